"""Compute the form `channel`: the truncated SVD of a kernel as a matrix, in two convolutions."""

from worker.forms.base import FormInputs, register
from worker.forms.kernels import as_kernels, mix_filters
from worker.lowrank import Factored, Kept, SVDMethod, factor


@register("channel", to_dense=mix_filters)
def compute_channel(inputs: FormInputs) -> Factored | Kept:
    """Truncate the SVD of the matrix [o, i·kernel] (Zhang et al. 2016, "Accelerating very deep networks").

    It is the best approximation by k filters. With a Gram matrix of the unfolded inputs the outputs of the
    convolution are approximated instead.

    Returns
    -------
    Factored or Kept
        Filters [k, i, *kernel] and their mix [o, k, 1, …], the singular values split evenly.
    """
    result = factor(inputs.weight, inputs.request(SVDMethod()), cache=inputs.cached)
    return result if isinstance(result, Kept) else as_kernels(inputs.layer, result)

"""Compute the form `svd`: the truncated singular value decomposition."""

from worker.forms.base import FormInputs, multiply_chain, register
from worker.lowrank import Factored, Kept, SVDMethod, factor


@register("svd", to_dense=multiply_chain)
def compute_svd(inputs: FormInputs) -> Factored | Kept:
    """Truncate the SVD of a weight (Eckart and Young 1936), or of W·G^½ where it is calibrated.

    Returns
    -------
    Factored or Kept
        Tensors R [k, n] and L [m, k], the singular values split evenly between them.
    """
    return factor(inputs.weight, inputs.request(SVDMethod()), cache=inputs.cached)

"""Compute the form `pivot`: the truncated SVD as some of its rows and the coefficients of the others."""

from collections.abc import Sequence

import torch

from worker.forms.base import FormInputs, register
from worker.lowrank import Factored, Kept, PivotMethod, factor, join_rows


def multiply_rows(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return Ŵ [m, n]: the stored rows as they are, and the others by their coefficients.

    Parameters
    ----------
    tensors : sequence of Tensor
        Rows [k, n], coefficients [m - k, k], and the indices of the rows [k], ascending.

    Returns
    -------
    Tensor [m, n]
        In the dtype of the rows, or in float32 if that is narrower.
    """
    rows, coefficients, indices = tensors
    dtype = torch.promote_types(rows.dtype, torch.float32)
    rows, coefficients = rows.to(dtype), coefficients.to(dtype)
    return join_rows(rows, coefficients @ rows, indices)


@register("pivot", to_dense=multiply_rows)
def compute_pivot(inputs: FormInputs) -> Factored | Kept:
    """Truncate the SVD as `svd` does, and store k of the product's rows (Zhao et al. 2025, PIFA).

    Returns
    -------
    Factored or Kept
        Tensors: rows [k, n], coefficients [m - k, k] of the other rows, and the indices of the rows [k].
    """
    return factor(inputs.weight, inputs.request(PivotMethod()), cache=inputs.cached)

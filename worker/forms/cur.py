"""Compute the form `cur`: columns and rows of the weight, joined by a small core matrix."""

from schemas.planning.forms.cur import Cur
from worker.forms.base import FormInputs, multiply_chain, register
from worker.lowrank import CURMethod, Factored, Kept, factor


@register("cur", to_dense=multiply_chain)
def compute_cur(inputs: FormInputs) -> Factored | Kept:
    """Choose k columns C and k rows R of a weight W and fit U = C⁺WR⁺ (Mahoney and Drineas 2009).

    Returns
    -------
    Factored or Kept
        Tensors R [k, n], U [k, k] and C [m, k], or U·R and C where two are stored; the choices are in
        `columns` and `rows`.
    """
    form = inputs.layer.form
    assert isinstance(form, Cur)
    request = inputs.request(CURMethod(form.selector or "qdeim", form.storage))
    return factor(inputs.weight, request, cache=inputs.cached)

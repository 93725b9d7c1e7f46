"""Compute the form `cx`: columns of the weight, and the coefficients that fit the others best."""

from schemas.planning.forms.cx import Cx
from worker.forms.base import FormInputs, multiply_chain, register
from worker.lowrank import CXMethod, Factored, Kept, factor


@register("cx", to_dense=multiply_chain)
def compute_cx(inputs: FormInputs) -> Factored | Kept:
    """Choose k columns C of a weight W and fit X = C⁺W (Mahoney and Drineas 2009).

    Returns
    -------
    Factored or Kept
        Tensors X [k, n] and C [m, k]; the chosen columns are in `columns`.
    """
    form = inputs.layer.form
    assert isinstance(form, Cx)
    request = inputs.request(CXMethod(form.selector or "qdeim"))
    return factor(inputs.weight, request, cache=inputs.cached)

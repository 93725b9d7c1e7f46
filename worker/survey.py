"""The first pass over layers that share a budget: a decomposition of each, kept for the second pass."""

import time
from array import array
from collections.abc import Callable, Sequence
from functools import partial

from schemas.report import KeptReason
from schemas.spectrum import Spectrum, careful_enough
from worker.hands import Hands
from worker.lowrank import Kept, decompose
from worker.lowrank.scale import exponent_of
from worker.plan import LayerTask
from worker.workshop import Given, Workshop

# Singular values, or why the layer stays dense.
Finding = Sequence[float] | KeptReason


def survey(tasks: Sequence[LayerTask], shop: Workshop) -> dict[int, Finding]:
    """Return what each layer turns out to be, by its number; no vectors stay in memory.

    What lies on the shelf already, maybe from an attempt that was killed, is not computed again.
    """
    assert shop.shelf is not None
    findings: dict[int, Finding] = {}
    for task in tasks:
        known = careful_enough(shop.shelf.spectra(task), task.layer.extent)
        if known is not None:
            findings[task.number] = known.scaled()
            shop.meter.end_survey(task)
    todo = [task for task in tasks if task.number not in findings]
    do = partial(_decompose, shop)
    hands = Hands(shop.given, do, begin=shop.meter.begin, end=shop.meter.end_survey, device=shop.device)
    return findings | hands.go_through(todo)


def _decompose(shop: Workshop, task: LayerTask, given: Given) -> tuple[Finding, Callable[[], None]]:
    assert shop.shelf is not None
    assert given.memo is not None
    begun = time.perf_counter()
    weight = given.weight.to(shop.device)
    gram = None if given.gram is None else given.gram.to(shop.device)
    found = decompose(weight, extent=task.layer.extent, memo=given.memo, gram=gram)
    if isinstance(found, Kept):
        return found.reason.value, lambda: None
    exponent = exponent_of(weight)
    assert exponent is not None  # or it could not have been decomposed
    values = array("d", found.singular_values.tolist())
    shop.shelf.surveyed_s[task.number] = time.perf_counter() - begun
    return Spectrum(values, exponent, found.noise).scaled(), partial(given.memo.write, exponent)

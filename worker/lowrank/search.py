"""The search for the least rank that keeps a promise."""

from collections.abc import Callable
from typing import TypeVar

Trial = TypeVar("Trial")


def least(start: int, ceiling: int, attempt: Callable[[int], Trial], holds: Callable[[Trial], bool]) -> Trial:
    """Return the trial of the least rank in [start, ceiling] that holds, or that of the ceiling if none does.

    Gallops up from `start` and then bisects, so it needs few trials where `start` is near. Where a trial may
    fail at a higher rank than one that holds, the rank found holds but a lower one might too.
    """
    failed, step, rank = start - 1, 1, start
    while not holds(found := attempt(rank)):
        if rank == ceiling:
            return found
        failed, rank, step = rank, min(rank + step, ceiling), 2 * step
    while rank - failed > 1:
        middle = (failed + rank) // 2
        trial = attempt(middle)
        if holds(trial):
            rank, found = middle, trial
        else:
            failed = middle
    return found

"""What went wrong on this machine: how long to wait before the next attempt, and whether this one counts."""

import errno
from dataclasses import dataclass

import torch

from schemas.problem import Problem, ProblemKind

# Waiting helps against these, but not against a limit on the size of a file.
NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Trouble:
    """The problem of a job that fails of it, and how many `retry_pause_s` pass before another attempt."""

    problem: Problem
    pauses: float
    counts: bool = True


def trouble_of(error: Exception) -> Trouble:
    """Classify an error that is not the input's."""
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        full = ProblemKind.OUT_OF_SPACE
        return Trouble(full.problem(full.text(found="")), 6, counts=False)
    kind = ProblemKind.WORKER_TROUBLE
    problem = kind.problem(kind.text(error=type(error).__name__))
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or _errno(error) == errno.ENOMEM:
        return Trouble(problem, 6)
    # A disk or a server of files that does not answer takes long to come back.
    return Trouble(problem, 60 if isinstance(error, OSError) else 1)


def layer_hung(layer: str | None, limit_s: float) -> Trouble:
    """Return the trouble of a layer that has taken longer than any should."""
    kind = ProblemKind.LAYER_HUNG
    return Trouble(kind.problem(kind.text(layer=layer or "(none)", limit_s=f"{limit_s:.0f}")), 1)


def _errno(error: Exception) -> int | None:
    return error.errno if isinstance(error, OSError) else None

"""Low-rank approximation of one matrix: pure functions of tensors, numbers and a seed."""

from worker.lowrank.cur import CUR, cur
from worker.lowrank.cx import CX, cx
from worker.lowrank.decomposition import Decomposition, Memo
from worker.lowrank.factor import decompose, factor
from worker.lowrank.gram import gram_fault
from worker.lowrank.outcome import Factored, FactorRequest, Kept, Reason, Weighted
from worker.lowrank.ranks import EnergyRank, ErrorRank
from worker.lowrank.residual import relative_error
from worker.lowrank.selectors import SELECTORS, Selector
from worker.lowrank.svd import LowRank, svd
from worker.lowrank.weighted import weighted_error

__all__ = [
    "CUR",
    "CX",
    "SELECTORS",
    "Decomposition",
    "EnergyRank",
    "ErrorRank",
    "FactorRequest",
    "Factored",
    "Kept",
    "LowRank",
    "Memo",
    "Reason",
    "Selector",
    "Weighted",
    "cur",
    "cx",
    "decompose",
    "factor",
    "gram_fault",
    "relative_error",
    "svd",
    "weighted_error",
]

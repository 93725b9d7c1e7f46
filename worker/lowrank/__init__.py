"""Low-rank approximation of one matrix: pure functions of tensors, numbers and a seed.

`factor` is what a job runs. It takes a `FactorRequest` with a method: `SVDMethod`, `PivotMethod`, `CXMethod`,
`CURMethod` or any other `Method`. `svd`, `cx` and `cur` are short calls of the same body.
"""

from worker.lowrank.candidate import Candidate, DecomposedWeight, Method
from worker.lowrank.cur import CUR, CX, STORAGES, CURMethod, CXMethod, Storage, cur, cx
from worker.lowrank.decomposition import Decomposition, SolverCache
from worker.lowrank.error import relative_error
from worker.lowrank.factor import decompose, factor
from worker.lowrank.faults import count_fault, grad_gram_fault, gram_fault, mean_fault
from worker.lowrank.norms import WeightedNorms
from worker.lowrank.pivot import PivotMethod, join_rows
from worker.lowrank.resizing import ThinProduct, resize, thin_product
from worker.lowrank.rounding import Grid, RoundedMatrix, round_nearest, round_weight
from worker.lowrank.selectors import SELECTORS, Selector
from worker.lowrank.statistics import Statistics
from worker.lowrank.svd import LowRank, SVDMethod, svd
from worker.lowrank.types import (
    AutoRank,
    EnergyRank,
    ErrorRank,
    Factored,
    FactorRequest,
    Kept,
    OutputError,
    Reason,
    SpectralRank,
)
from worker.lowrank.weighting import WeightedError, output_error, predicted_loss, weighted_error

__all__ = [
    "CUR",
    "CX",
    "SELECTORS",
    "STORAGES",
    "AutoRank",
    "CURMethod",
    "CXMethod",
    "Candidate",
    "DecomposedWeight",
    "Decomposition",
    "EnergyRank",
    "ErrorRank",
    "FactorRequest",
    "Factored",
    "Grid",
    "Kept",
    "LowRank",
    "Method",
    "OutputError",
    "PivotMethod",
    "Reason",
    "RoundedMatrix",
    "SVDMethod",
    "Selector",
    "SolverCache",
    "SpectralRank",
    "Statistics",
    "Storage",
    "ThinProduct",
    "WeightedError",
    "WeightedNorms",
    "count_fault",
    "cur",
    "cx",
    "decompose",
    "factor",
    "grad_gram_fault",
    "gram_fault",
    "join_rows",
    "mean_fault",
    "output_error",
    "predicted_loss",
    "relative_error",
    "resize",
    "round_nearest",
    "round_weight",
    "svd",
    "thin_product",
    "weighted_error",
]

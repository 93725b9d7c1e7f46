"""What callers may give: checked once, here."""

import torch

from worker.lowrank.scale import exponent_of
from worker.lowrank.selectors import SELECTORS

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def check_weight(weight: torch.Tensor) -> None:
    """Refuse what is not a real matrix of at least one row and column."""
    if weight.ndim != 2 or 0 in weight.shape:
        raise ValueError(
            f"a weight must be a matrix with at least one row and column, not {tuple(weight.shape)}"
        )
    if weight.dtype not in DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(f"a weight must be {names}, not {str(weight.dtype).removeprefix('torch.')}")


def finite_exponent(weight: torch.Tensor) -> int:
    """Return the weight's scale, refusing NaN and infinite entries."""
    check_weight(weight)
    exponent = exponent_of(weight)
    if exponent is None:
        raise ValueError("the weight holds NaN or infinite values; replace them first")
    return exponent


def check_rank(rank: int, weight: torch.Tensor) -> None:
    """Refuse ranks that this weight cannot have."""
    largest = min(weight.shape)
    if not 1 <= rank <= largest:
        raise ValueError(f"rank must lie between 1 and min(m, n) = {largest}, not {rank}")


def check_seed(seed: int) -> None:
    """Refuse seeds that the generator would."""
    if seed < 0:
        raise ValueError(f"seed must be ≥ 0, not {seed}")


def check_selector(selector: str) -> None:
    """Refuse unknown selectors."""
    if selector not in SELECTORS:
        raise ValueError(f"selector must be one of {', '.join(SELECTORS)}, not {selector!r}")

"""Training for low rank: penalties that make singular values few, and fine-tuning of factored models."""

from eckart.errors import missing_extra

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    raise missing_extra(error, "torch") from error

from eckart.train.nuclear import nuclear_norm
from eckart.train.penalty import LowRankPenalty
from eckart.train.tuning import finetune

__all__ = ["LowRankPenalty", "finetune", "nuclear_norm"]

"""Batches of inputs, as calibration and fine-tuning take them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def call_model(model: nn.Module, batch: object) -> object:
    """Call a model with a mapping as keywords, a tuple or list in order, or else with one argument."""
    if isinstance(batch, Mapping):
        return model(**batch)
    if isinstance(batch, tuple | list):
        return model(*batch)
    return model(batch)

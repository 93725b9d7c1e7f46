"""worker.lowrank.types: requests that make no sense are refused."""

import math
from typing import get_args

import pytest
import torch

from schemas.report import KeptReason
from tests.worker.lowrank.requests import asked
from worker.lowrank import EnergyRank, ErrorRank, Reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "cur", "storage": "one"}, "storage must be one of three, two"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"max_rank": -1}, "max_rank must be at least 0"),
        ({"align": 0}, "align and min_rank must be at least 1"),
        ({"dtype": torch.int8}, "factors cannot be stored as"),
        ({"method": "cx", "selector": "best"}, "selector must be one of"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        asked(**change)


@pytest.mark.parametrize("energy", [0.0, -0.1, 1.1, math.nan])
def test_an_energy_outside_its_range_is_refused(energy):
    with pytest.raises(ValueError, match=r"energy must lie in \(0, 1\]"):
        EnergyRank(energy)


@pytest.mark.parametrize("epsilon", [-0.1, math.inf, math.nan])
def test_an_error_outside_its_range_is_refused(epsilon):
    with pytest.raises(ValueError, match="epsilon must be"):
        ErrorRank(epsilon)


def test_every_reason_is_one_of_the_report():
    assert {reason.value for reason in Reason} <= set(get_args(KeptReason))

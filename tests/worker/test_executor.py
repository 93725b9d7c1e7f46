"""A pass over layers: worker/executor.py."""

import sys
from dataclasses import dataclass

import pytest
import torch

from worker.executor import SMALL_WORK, LayerExecutor


@dataclass(frozen=True)
class Task:
    number: int
    cost: int
    elements: int = 1


class StoppedError(Exception):
    pass


class Pass:
    """Doubles numbers, and stops the work at one layer."""

    def __init__(self, stop_at=None):
        self.stop_at = stop_at
        self.written = []

    def read(self, task):
        return task.number

    def compute(self, task, inputs):
        if task.number == self.stop_at:
            raise StoppedError
        return 2 * inputs

    def write(self, task, result):
        self.written.append(task.number)
        return result


@pytest.fixture
def slow_switches():
    """Let a thread run on for long, so that another one that has work hardly begins it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1.0)
    yield
    sys.setswitchinterval(before)


@pytest.mark.parametrize("cost", [1, 2 * SMALL_WORK])
def test_outcomes_come_by_number_once_all_are_written(cost):
    layer_pass = Pass()

    outcomes = LayerExecutor(torch.device("cpu")).run([Task(n, cost) for n in range(5)], layer_pass)

    assert outcomes == {n: 2 * n for n in range(5)}
    assert sorted(layer_pass.written) == list(range(5))


@pytest.mark.usefixtures("slow_switches")
@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_every_computed_layer_is_written_though_the_work_is_stopped_at_the_next(stop_at):
    for _ in range(20):
        layer_pass = Pass(stop_at)
        with pytest.raises(StoppedError):
            LayerExecutor(torch.device("cpu")).run([Task(n, 2 * SMALL_WORK) for n in range(5)], layer_pass)

        assert layer_pass.written == list(range(stop_at))

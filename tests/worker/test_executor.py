"""A pass over layers: worker/executor.py."""

import sys
from dataclasses import dataclass

import pytest
import torch

from worker.executor import GROUP_LAYERS, GROUP_WORK, SMALL_WORK, LayerExecutor


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


@pytest.mark.parametrize("count", [0, 1, 2, 9])
@pytest.mark.parametrize(("device", "cost"), [("cpu", 1), ("cpu", 2 * SMALL_WORK), ("cuda", 1)])
def test_outcomes_come_by_number_once_all_are_written(device, cost, count):
    layer_pass = Pass()

    outcomes = LayerExecutor(torch.device(device)).run([Task(n, cost) for n in range(count)], layer_pass)

    assert outcomes == {n: 2 * n for n in range(count)}
    assert sorted(layer_pass.written) == list(range(count))


@pytest.mark.usefixtures("slow_switches")
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_every_computed_layer_is_written_though_the_work_is_stopped_at_the_next(stop_at, device):
    for _ in range(20):
        layer_pass = Pass(stop_at)
        with pytest.raises(StoppedError):
            LayerExecutor(torch.device(device)).run([Task(n, 2 * SMALL_WORK) for n in range(5)], layer_pass)

        assert sorted(layer_pass.written) == list(range(stop_at))


class Steps(Pass):
    """Notes the steps in their order."""

    def __init__(self, stop_at=None):
        super().__init__(stop_at)
        self.steps = []

    def read(self, task):
        self.steps.append(("read", task.number))
        return super().read(task)

    def compute(self, task, inputs):
        self.steps.append(("compute", task.number))
        return super().compute(task, inputs)

    def write(self, task, result):
        self.steps.append(("write", task.number))
        return super().write(task, result)


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_thousands_of_tiny_layers_are_written_in_groups():
    layer_pass = Steps()
    outcomes = LayerExecutor(torch.device("cpu")).run([Task(n, 1) for n in range(2000)], layer_pass)

    assert outcomes == {n: 2 * n for n in range(2000)}
    for step in ("read", "compute", "write"):
        assert [number for kind, number in layer_pass.steps if kind == step] == list(range(2000))
    first = [("read", n) for n in range(GROUP_LAYERS)]
    assert layer_pass.steps[: GROUP_LAYERS + 1] == [*first, ("compute", 0)]
    assert layer_pass.steps[2 * GROUP_LAYERS] == ("write", 0)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "tasks",
    [
        [Task(n, 1) for n in range(2 * GROUP_LAYERS - 1)],
        [Task(n, GROUP_WORK) for n in range(2000)],
        [Task(n, 1 + n % 2 * GROUP_WORK) for n in range(2000)],
    ],
)
def test_few_layers_and_larger_ones_are_written_one_by_one(tasks):
    layer_pass = Steps()
    LayerExecutor(torch.device("cpu")).run(tasks, layer_pass)

    each = [(step, task.number) for task in tasks for step in ("read", "compute", "write")]
    assert layer_pass.steps == each


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("stop_at", [0, 31, 32, 70])
def test_of_a_group_every_computed_layer_is_written_though_the_work_is_stopped(stop_at):
    layer_pass = Steps(stop_at)
    with pytest.raises(StoppedError):
        LayerExecutor(torch.device("cpu")).run([Task(n, 1) for n in range(2000)], layer_pass)

    group = range(stop_at, stop_at // GROUP_LAYERS * GROUP_LAYERS + GROUP_LAYERS)
    assert layer_pass.written[:stop_at] == list(range(stop_at))
    assert not set(group) & set(layer_pass.written)

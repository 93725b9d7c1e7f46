"""worker/device.py: the processes of a worker share the processors, or their threads wait for each other."""

import pytest
import torch

from worker.device import set_threads
from worker.processors import processors

HERE = processors()


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.get_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("asked", "workers", "used"),
    [(None, 1, HERE), (None, 2, max(1, HERE // 2)), (None, HERE + 1, 1), (3, 2, 3)],
)
def test_each_process_takes_its_share_unless_a_number_is_asked_for(threads, asked, workers, used):
    set_threads(asked, workers=workers)
    assert threads() == used

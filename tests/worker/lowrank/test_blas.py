"""worker.lowrank.blas: how many threads each library computes with."""

import threading

import pytest
import threadpoolctl
import torch

from worker.lowrank.blas import limit_blas_threads, prefers_scipy


def counts():
    """Give the number of threads of every OpenBLAS of the process."""
    libraries = threadpoolctl.ThreadpoolController().select(internal_api="openblas")
    return {library.num_threads for library in libraries.lib_controllers}


@pytest.fixture
def two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def in_a_thread(threads):
    """Note what a fresh thread of so many computes with."""
    seen = []

    def look():
        torch.set_num_threads(threads)
        with limit_blas_threads():
            seen.append((counts(), torch.get_num_threads()))
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    return seen


@pytest.mark.usefixtures("two_threads")
def test_each_thread_computes_with_its_own_number_whoever_came_before():
    for threads in (1, 2, 1):
        with limit_blas_threads():
            assert counts() == {2}
        assert torch.get_num_threads() == 2
        assert in_a_thread(threads) == [({threads}, 1 if prefers_scipy() else threads), threads]

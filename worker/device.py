"""Which device the numerics run on, and with how many threads."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

DeviceChoice = Literal["auto", "cpu", "cuda"]

# Flops up to which one thread is as fast as several on an idle machine. On a busy one several wait for each
# other at every step: the decomposition of a 384 x 384 weight was seen to take 3 s instead of 15 ms.
SMALL_WORK = 2**30


def choose_device(choice: DeviceChoice) -> torch.device:
    """Return the device asked for; `auto` is CUDA where there is one."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise ValueError("ECKART_DEVICE=cuda, but torch finds no CUDA device; use auto or cpu")
    if choice == "auto":
        choice = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(choice)


def set_threads(threads: int | None) -> None:
    """Use that many threads, or all processors this process may run on."""
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))


@contextmanager
def threads_for(work: int) -> Iterator[None]:
    """Use one thread for small work; the work alone decides, so the bytes stay the same."""
    most = torch.get_num_threads()
    torch.set_num_threads(1 if work <= SMALL_WORK else most)
    try:
        yield
    finally:
        torch.set_num_threads(most)

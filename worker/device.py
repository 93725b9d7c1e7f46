"""Which device the numerics run on, and with how many threads."""

import os
from typing import Literal

import torch

DeviceChoice = Literal["auto", "cpu", "cuda"]


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

"""The device and the number of threads of the numerics."""

import os

import torch

from worker.settings import DeviceChoice


def choose_device(choice: DeviceChoice) -> torch.device:
    """Return the requested device; `auto` is CUDA if there is a CUDA device, else the CPU."""
    if choice == "cuda" and not torch.cuda.is_available():
        raise ValueError("ECKART_DEVICE=cuda, but torch finds no CUDA device; use auto or cpu")
    if choice == "auto":
        choice = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(choice)


def set_threads(threads: int | None) -> None:
    """Use this many threads, or as many as there are processors for this process."""
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))

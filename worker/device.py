"""The device and the number of threads of the numerics, and copies to the device."""

from functools import cache

import torch

from worker.processors import processors
from worker.settings import DeviceChoice


def choose_device(choice: DeviceChoice) -> torch.device:
    """Return the requested device; `auto` is CUDA if there is a CUDA device, else the CPU.

    On CUDA this also sets products of float32 to its full precision, which the environment may have lowered
    to the ten bits of TF32.
    """
    if choice == "cuda" and not torch.cuda.is_available():
        raise ValueError("ECKART_DEVICE=cuda, but torch finds no CUDA device; use auto or cpu")
    if choice == "auto":
        choice = "cuda" if torch.cuda.is_available() else "cpu"
    if choice == "cpu":
        return torch.device("cpu")
    torch.set_float32_matmul_precision("highest")
    # With its index, as tensors name it, so that both are equal.
    return torch.device("cuda", torch.cuda.current_device())


def set_threads(threads: int | None, *, workers: int = 1) -> None:
    """Use this many threads, or this process's share of the processors where several run on them."""
    torch.set_num_threads(threads or max(1, processors() // workers))


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on a GPU, copied while others are computed with; on the CPU the tensor itself."""
    if device.type != "cuda":
        return tensor
    stream = _copy_stream(device)
    with torch.cuda.stream(stream):
        copy = tensor.to(device)
    stream.synchronize()
    # Its memory belongs to that stream, and must not be given away while this one still computes.
    copy.record_stream(torch.cuda.default_stream(device))
    return copy


@cache
def _copy_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

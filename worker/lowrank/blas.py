"""Products of matrices by the faster BLAS library: the one in torch, or the OpenBLAS in scipy."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import threadpoolctl
import torch

from worker.lowrank import openblas

CPU_INFO = Path("/proc/cpuinfo")
# Elements of one block of rows that is taken to a wider dtype for one product.
WIDENED_ELEMENTS = 1 << 22
TILE = 512

_inside = threading.local()


@cache
def prefers_scipy() -> bool:
    """Return whether scipy computes products on the CPU.

    The MKL in torch takes slower paths on processors that are not made by Intel: on those of AMD it needs
    about twice the time of OpenBLAS. The vendor decides and not a timing, with which the bytes would depend
    on the load of the machine. Only scipy's copy of OpenBLAS is used and never numpy's: the threads of a
    library wait busily for some time after each call, and would take the processors from those of the other
    (measured in docs/decisions/0011-numpy-was-measured.md).
    """
    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        return "AuthenticAMD" in CPU_INFO.read_text()
    except OSError:
        return False


def kernels() -> tuple[str, ...]:
    """Return the names of the kernels in use: the processor selects them, and they decide the last bits."""
    return str(prefers_scipy()), *(library.architecture for library in _openblas())


@contextmanager
def limit_blas_threads() -> Iterator[None]:
    """Let the threads of one library work at a time, as many as torch may use in this thread.

    Threads of both libraries at once wait busily for each other: 2048 x 2048 then took five times as long.
    """
    if getattr(_inside, "already", False):
        yield
        return
    threads = torch.get_num_threads()
    for library in _openblas():
        # The library obeys only the first thread that set a number, until that claim is cleared. OpenBLAS has
        # one number for the whole process; layers that run side by side ask for the same one.
        library.clear_controlling_thread(force=True)
        library.set_num_threads(threads)
    _inside.already, _inside.threads = True, threads
    if prefers_scipy():
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _inside.already = False


@contextmanager
def restore_torch_threads() -> Iterator[None]:
    """Return to torch the threads that :func:`limit_blas_threads` took from it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(getattr(_inside, "threads", threads) if prefers_scipy() else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def _openblas() -> tuple[threadpoolctl.LibController, ...]:
    libraries = threadpoolctl.ThreadpoolController().select(internal_api="openblas")
    return tuple(libraries.lib_controllers)


def product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return left · right.

    Parameters
    ----------
    left : Tensor [m, j]
        float32 or float64, on any device.
    right : Tensor [j, n]
        Of the same dtype and device.

    Returns
    -------
    Tensor [m, n]
        Contiguous.
    """
    if left.device.type != "cpu" or not prefers_scipy():
        return left @ right
    # Rows read column by column are the transpose, so computing Rᵀ · Lᵀ needs no copy.
    return torch.from_numpy(openblas.gemm(1, right.detach().numpy().T, left.detach().numpy().T).T)


def subtract_product(target: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Subtract left · right from a contiguous matrix [m, n] in place; arguments as for :func:`product`."""
    assert target.is_contiguous()
    if target.device.type != "cpu" or not prefers_scipy():
        target.addmm_(left, right, alpha=-1)
        return
    openblas.gemm(-1, right.detach().numpy().T, left.detach().numpy().T, beta=1, into=target.numpy().T)


def self_product(tall: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return AᵀA, summed in a dtype that may be wider than that of A; A is widened in blocks of rows.

    Parameters
    ----------
    tall : Tensor [m, n]
        A; float32 or float64.
    dtype : torch.dtype
        float32 or float64, at least as wide as A's.

    Returns
    -------
    Tensor [n, n]
        Symmetric to the last bit.
    """
    n = tall.shape[1]
    if tall.device.type != "cpu" or not prefers_scipy():
        total = torch.zeros(n, n, dtype=dtype, device=tall.device)
        for block in _blocks(tall, dtype):
            total.addmm_(block.mT, block)
        return symmetrize(total)
    sums = np.zeros((n, n), dtype=np.float64 if dtype == torch.float64 else np.float32, order="F")
    for block in _blocks(tall, dtype):
        openblas.syrk(block.detach().numpy(), sums)
    return symmetrize(torch.from_numpy(sums.T))


def symmetrize(lower: torch.Tensor) -> torch.Tensor:
    """Copy the lower triangle of a square matrix over its upper one, in place, and return it."""
    n = len(lower)
    for start in range(0, n, TILE):
        stop = min(start + TILE, n)
        lower[:start, start:stop] = lower[start:stop, :start].mT
        tile = lower[start:stop, start:stop]
        tile.copy_(tile.tril() + tile.tril(-1).mT)
    return lower


def _blocks(tall: torch.Tensor, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    rows = len(tall) if tall.dtype == dtype else max(1, WIDENED_ELEMENTS // tall.shape[1])
    for block in torch.split(tall, rows):
        yield block.to(dtype)

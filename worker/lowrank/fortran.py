"""Compiled routines of scipy's OpenBLAS, called by their addresses and without the interpreter's lock."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy.linalg import cython_blas, cython_lapack

if TYPE_CHECKING:
    from collections.abc import Callable

Matrix = npt.NDArray[np.floating]
Cell = ctypes.c_int64 | ctypes.c_float | ctypes.c_double
Argument = bytes | int | Matrix | npt.NDArray[np.int64] | Cell

# The routines of each precision by their first letter, by numpy's character for the dtype.
_PRECISION = {"f": "s", "d": "d"}
_capsule_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def solve(name: str, like: Matrix, arguments: tuple[Argument, ...], *, integers: int | None) -> None:
    """Call a LAPACK routine with the workspace that it asks for.

    Parameters
    ----------
    name : str
        Without the letter of the precision.
    like : array
        Of the precision to compute in.
    arguments : tuple
        All up to the workspace, in the routine's order; their sizes must be what it expects.
    integers : int or None
        The length of its integer workspace: 0 for none, None if it is to be asked for too.

    Raises
    ------
    LinAlgError
        If the routine says that it failed.
    KeyError
        If the precision is neither float32 nor float64.
    """
    asked, asked_integers = np.zeros(1, like.dtype), np.zeros(1, np.int64)
    counts: tuple[Argument, ...] = ()
    if integers is None:
        counts = (asked_integers, -1)
    elif integers:
        counts = (np.empty(integers, np.int64),)
    call(name, like, *arguments, asked, -1, *counts, integer(0))
    # In float32 a length may have been rounded down.
    length = int(np.nextafter(asked[0], np.inf, dtype=like.dtype)) + 1
    if integers is None:
        counts = (np.empty(int(asked_integers[0]), np.int64), int(asked_integers[0]))
    info = integer(0)
    call(name, like, *arguments, np.empty(length, like.dtype), length, *counts, info)
    if info.value:
        raise np.linalg.LinAlgError(f"{name} failed with info {ctypes.c_int32(info.value).value}")


def call(name: str, like: Matrix, *arguments: Argument) -> None:
    """Call a routine in the precision of a matrix; Fortran takes every argument by its address.

    Parameters and errors are as for :func:`solve`, but `arguments` are all of them; nothing is checked.
    """
    routine = _routine(_PRECISION[like.dtype.char] + name)
    kept = [integer(value) if isinstance(value, int) else value for value in arguments]
    routine(*[_address(value) for value in kept])


def _address(value: bytes | Matrix | npt.NDArray[np.int64] | Cell) -> object:
    if isinstance(value, np.ndarray):
        return value.ctypes
    return value if isinstance(value, bytes) else ctypes.byref(value)


@cache
def _routine(name: str) -> Callable[..., None]:
    offered = cython_blas.__pyx_capi__ if name[1:] in {"gemm", "syrk"} else cython_lapack.__pyx_capi__
    signature: bytes = _capsule_name(offered[name])
    arguments = [ctypes.c_void_p] * (signature.count(b",") + 1)
    return ctypes.CFUNCTYPE(None, *arguments)(_capsule_pointer(offered[name], signature))


def integer(value: int) -> ctypes.c_int64:
    """Give an integer that routines of 32-bit and of 64-bit integers read and write alike (little-endian)."""
    return ctypes.c_int64(value)


def scalar(value: float, like: Matrix) -> Cell:
    return ctypes.c_float(value) if like.dtype == np.float32 else ctypes.c_double(value)

"""BLAS and LAPACK routines of scipy's OpenBLAS, called so that every other thread of the process goes on.

scipy.linalg keeps the interpreter's lock while these compute, which is seconds to minutes for a large layer:
no heartbeat is sent meanwhile, and nothing is read ahead or written behind. scipy offers the same routines to
compiled code by their addresses (`scipy.linalg.cython_blas`, `scipy.linalg.cython_lapack`), and a call
through ctypes lets go of the lock.
"""

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
_Cell = ctypes.c_int64 | ctypes.c_float | ctypes.c_double
_Argument = bytes | int | Matrix | npt.NDArray[np.int64] | _Cell

# The routines of each precision by their first letter, by numpy's character for the dtype.
_PRECISION = {"f": "s", "d": "d"}
_capsule_name = ctypes.PYFUNCTYPE(ctypes.c_char_p, ctypes.py_object)(("PyCapsule_GetName", ctypes.pythonapi))
_capsule_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


def gemm(alpha: float, left: Matrix, right: Matrix, *, beta: float = 0, into: Matrix | None = None) -> Matrix:
    """Return alpha · left · right + beta · into.

    Parameters
    ----------
    alpha, beta : float
        Factors.
    left : array [m, j]
        float32 or float64. One in neither C nor Fortran order is copied.
    right : array [j, n]
        Of the same dtype.
    into : array [m, n], optional
        In Fortran order, and overwritten; without it `beta` must be 0.

    Returns
    -------
    array [m, n]
        In Fortran order; `into`, if given.

    Raises
    ------
    ValueError
        If shapes, dtypes or the order of `into` do not fit.
    """
    (m, j), n = left.shape, right.shape[1]
    result = np.empty((m, n), left.dtype, order="F") if into is None else into
    if len(right) != j or right.dtype != left.dtype:
        raise ValueError(f"{_words(left)} and {_words(right)} have no product")
    _check_target(result, (m, n), left)
    if 0 in (m, n):
        return result
    (a, a_flip), (b, b_flip) = _columns(left), _columns(right)
    times_product = _scalar(alpha, left), a, _ld(a), b, _ld(b)
    plus_target = _scalar(beta, left), result, m
    _call("gemm", left, a_flip, b_flip, m, n, j, *times_product, *plus_target)
    return result


def syrk(tall: Matrix, into: Matrix) -> None:
    """Add the upper triangle of AᵀA to that of a square array; what is below stays.

    Parameters
    ----------
    tall : array [m, n]
        A; float32 or float64. One in neither C nor Fortran order is copied.
    into : array [n, n]
        Of the same dtype, in Fortran order; overwritten.

    Raises
    ------
    ValueError
        If shape, dtype or order of `into` do not fit.
    """
    m, n = tall.shape
    _check_target(into, (n, n), tall)
    a, flip = _columns(tall)
    # The routine's own word for AᵀA is "T", and a flipped A is flipped once more.
    transposed = b"T" if flip == b"N" else b"N"
    one = _scalar(1, tall)
    if n:
        _call("syrk", tall, b"U", transposed, n, m, one, a, _ld(a), one, into, n)


def syevd(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """Return all eigenpairs of a symmetric matrix by divide and conquer (Cuppen 1981).

    Parameters
    ----------
    matrix : array [n, n]
        Symmetric, of which the lower triangle is read; float32 or float64, n ≥ 1; finite.

    Returns
    -------
    values : array [n]
        Ascending.
    vectors : array [n, n]
        In columns, in Fortran order.

    Raises
    ------
    LinAlgError
        If it did not converge.
    KeyError
        If the dtype is another; so in all that follow.
    """
    n = len(matrix)
    vectors = matrix.copy(order="F")
    values = np.empty(n, matrix.dtype)
    _solve("syevd", matrix, (b"V", b"L", n, vectors, n, values), integers=None)
    return values, vectors


def syevr(matrix: Matrix, count: int) -> tuple[Matrix, Matrix]:
    """Return the `count` largest eigenpairs of a symmetric matrix.

    By multiple relatively robust representations (Dhillon and Parlett 2004). The rest is as for
    :func:`syevd`, with `values` [count] and `vectors` [n, count].
    """
    n = len(matrix)
    values = np.empty(n, matrix.dtype)
    vectors = np.empty((n, count), matrix.dtype, order="F")
    zero, found, support = _scalar(0, matrix), _integer(0), np.empty(2 * n, np.int64)
    which = zero, zero, n - count + 1, n, zero, found
    out = values, vectors, n, support
    _solve("syevr", matrix, (b"V", b"I", b"L", n, matrix.copy(order="F"), n, *which, *out), integers=None)
    if found.value != count:
        raise np.linalg.LinAlgError(f"syevr found {found.value} eigenpairs of {count}")
    return values[:count], vectors


def gesdd(matrix: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Return the thin singular value decomposition by divide and conquer (Gu and Eisenstat 1995).

    Parameters
    ----------
    matrix : array [m, n]
        float32 or float64, m, n ≥ 1; finite.

    Returns
    -------
    u, s, vh : array [m, p], [p], [p, n]
        p = min(m, n); s descends; u and vh in Fortran order.

    Raises
    ------
    LinAlgError
        If it did not converge.
    """
    m, n = matrix.shape
    p = min(m, n)
    u, s, vh = _svd_parts(matrix)
    arguments = (b"S", m, n, matrix.copy(order="F"), m, s, u, m, vh, p)
    _solve("gesdd", matrix, arguments, integers=8 * p)
    return u, s, vh


def gesvd(matrix: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Return the same as :func:`gesdd` by QR iteration (Golub and Reinsch 1970)."""
    m, n = matrix.shape
    u, s, vh = _svd_parts(matrix)
    arguments = (b"S", b"S", m, n, matrix.copy(order="F"), m, s, u, m, vh, min(m, n))
    _solve("gesvd", matrix, arguments, integers=0)
    return u, s, vh


def _svd_parts(matrix: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    (m, n), p = matrix.shape, min(matrix.shape)
    u, vh = (np.empty(shape, matrix.dtype, order="F") for shape in ((m, p), (p, n)))
    return u, np.empty(p, matrix.dtype), vh


def _solve(name: str, like: Matrix, arguments: tuple[_Argument, ...], *, integers: int | None) -> None:
    """Call a LAPACK routine with the workspace that it asks for.

    `integers` is the length of its integer workspace: 0 for none, None if it is asked for too.
    """
    asked, asked_integers = np.zeros(1, like.dtype), np.zeros(1, np.int64)
    counts: tuple[_Argument, ...] = ()
    if integers is None:
        counts = (asked_integers, -1)
    elif integers:
        counts = (np.empty(integers, np.int64),)
    _call(name, like, *arguments, asked, -1, *counts, _integer(0))
    # In float32 a length may have been rounded down.
    length = int(np.nextafter(asked[0], np.inf, dtype=like.dtype)) + 1
    if integers is None:
        counts = (np.empty(int(asked_integers[0]), np.int64), int(asked_integers[0]))
    info = _integer(0)
    _call(name, like, *arguments, np.empty(length, like.dtype), length, *counts, info)
    if info.value:
        raise np.linalg.LinAlgError(f"{name} failed with info {ctypes.c_int32(info.value).value}")


def _call(name: str, like: Matrix, *arguments: _Argument) -> None:
    """Call a routine in the precision of a matrix; Fortran takes every argument by its address."""
    routine = _routine(_PRECISION[like.dtype.char] + name)
    kept = [_integer(value) if isinstance(value, int) else value for value in arguments]
    routine(*[_address(value) for value in kept])


def _address(value: bytes | Matrix | npt.NDArray[np.int64] | _Cell) -> object:
    if isinstance(value, np.ndarray):
        return value.ctypes
    return value if isinstance(value, bytes) else ctypes.byref(value)


@cache
def _routine(name: str) -> Callable[..., None]:
    offered = cython_blas.__pyx_capi__ if name[1:] in {"gemm", "syrk"} else cython_lapack.__pyx_capi__
    signature: bytes = _capsule_name(offered[name])
    arguments = [ctypes.c_void_p] * (signature.count(b",") + 1)
    return ctypes.CFUNCTYPE(None, *arguments)(_capsule_pointer(offered[name], signature))


def _integer(value: int) -> ctypes.c_int64:
    """Give an integer that routines of 32-bit and of 64-bit integers read and write alike (little-endian)."""
    return ctypes.c_int64(value)


def _scalar(value: float, like: Matrix) -> _Cell:
    return ctypes.c_float(value) if like.dtype == np.float32 else ctypes.c_double(value)


def _columns(matrix: Matrix) -> tuple[Matrix, bytes]:
    """Return an array in Fortran order, and "T" if it is the transpose of the matrix."""
    if matrix.flags.f_contiguous:
        return matrix, b"N"
    return np.asfortranarray(matrix.T), b"T"


def _ld(columns: Matrix) -> int:
    rows: int = columns.shape[0]
    return max(1, rows)


def _check_target(target: Matrix, shape: tuple[int, int], like: Matrix) -> None:
    # Fortran writes wherever it is told to.
    if target.shape != shape or target.dtype != like.dtype or not target.flags.f_contiguous:
        raise ValueError(f"{_words(target)} cannot take a result of {shape}")


def _words(matrix: Matrix) -> str:
    return f"{matrix.dtype} {list(matrix.shape)}"

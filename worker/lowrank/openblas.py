"""BLAS and LAPACK routines of scipy's OpenBLAS, called by address so that the interpreter's lock is free.

scipy.linalg holds the interpreter's lock while these routines compute: half a second for the eigenpairs of a
2048 x 2048 matrix, and the time grows with the cube. No heartbeat could be sent in that time. scipy publishes
the addresses of the same routines for compiled code (`scipy.linalg.cython_blas` and `cython_lapack`), and a
call through ctypes releases the lock. numpy.linalg releases it too, but computes in float64 only: see
docs/decisions/0011-numpy-was-measured.md.

A wrong argument does not raise but crashes, so only `worker.lowrank.blas` and `worker.lowrank.lapack` call
these functions, which check all sizes first.
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
Scalar = ctypes.c_int64 | ctypes.c_float | ctypes.c_double
Argument = bytes | int | Matrix | npt.NDArray[np.int64] | Scalar

# The first letter of a routine's name says its precision; by numpy's character for the dtype.
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
        float32 or float64. An array in neither C nor Fortran order is copied.
    right : array [j, n]
        Of the same dtype.
    into : array [m, n], optional
        In Fortran order; it is overwritten. Without it `beta` must be 0.

    Returns
    -------
    array [m, n]
        In Fortran order; this is `into`, if given.

    Raises
    ------
    ValueError
        If shapes, dtypes or the order of `into` do not fit.
    """
    (m, j), n = left.shape, right.shape[1]
    result = np.empty((m, n), left.dtype, order="F") if into is None else into
    if len(right) != j or right.dtype != left.dtype:
        raise ValueError(f"cannot multiply {_describe(left)} by {_describe(right)}")
    _check_target(result, (m, n), left)
    if 0 in (m, n):
        return result
    (a, a_flip), (b, b_flip) = _fortran_order(left), _fortran_order(right)
    operands = _scalar(alpha, left), a, _leading_dimension(a), b, _leading_dimension(b)
    _call("gemm", left, a_flip, b_flip, m, n, j, *operands, _scalar(beta, left), result, m)
    return result


def syrk(tall: Matrix, into: Matrix) -> None:
    """Add the upper triangle of AᵀA to that of a square array; entries below the diagonal stay as they are.

    Parameters
    ----------
    tall : array [m, n]
        A; float32 or float64. An array in neither C nor Fortran order is copied.
    into : array [n, n]
        Of the same dtype, in Fortran order; it is overwritten.

    Raises
    ------
    ValueError
        If shape, dtype or order of `into` do not fit.
    """
    m, n = tall.shape
    _check_target(into, (n, n), tall)
    a, flip = _fortran_order(tall)
    # The routine calls AᵀA "T". An array that is passed as its transpose is transposed once more.
    transposed = b"T" if flip == b"N" else b"N"
    one = _scalar(1, tall)
    if n:
        _call("syrk", tall, b"U", transposed, n, m, one, a, _leading_dimension(a), one, into, n)


def syevd(matrix: Matrix) -> tuple[Matrix, Matrix]:
    """Return all eigenpairs of a symmetric matrix by divide and conquer (Cuppen 1981).

    Parameters
    ----------
    matrix : array [n, n]
        Symmetric; only the lower triangle is read. float32 or float64, n ≥ 1, finite.

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
        If the dtype is another one; the same holds for the functions below.
    """
    n = len(matrix)
    vectors = matrix.copy(order="F")
    values = np.empty(n, matrix.dtype)
    _solve("syevd", matrix, (b"V", b"L", n, vectors, n, values), integers=None)
    return values, vectors


def syevr(matrix: Matrix, count: int) -> tuple[Matrix, Matrix]:
    """Return the `count` largest eigenpairs of a symmetric matrix.

    By multiple relatively robust representations (Dhillon and Parlett 2004). The arguments and results are as
    for :func:`syevd`, with `values` [count] and `vectors` [n, count].
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


def _fortran_order(matrix: Matrix) -> tuple[Matrix, bytes]:
    """Return an array in Fortran order, and "T" if it is the transpose of the matrix."""
    if matrix.flags.f_contiguous:
        return matrix, b"N"
    return np.asfortranarray(matrix.T), b"T"


def _leading_dimension(columns: Matrix) -> int:
    rows: int = columns.shape[0]
    return max(1, rows)


def _check_target(target: Matrix, shape: tuple[int, int], like: Matrix) -> None:
    # Fortran would write out of bounds.
    if target.shape != shape or target.dtype != like.dtype or not target.flags.f_contiguous:
        raise ValueError(f"{_describe(target)} cannot hold a result of {shape}")


def _describe(matrix: Matrix) -> str:
    return f"{matrix.dtype} {list(matrix.shape)}"


def _solve(name: str, like: Matrix, arguments: tuple[Argument, ...], *, integers: int | None) -> None:
    """Call a LAPACK routine with the workspace that it asks for.

    `name` lacks the letter of the precision, which `like` gives. `arguments` are all up to the workspace;
    their sizes must be what the routine expects. `integers` is the length of its integer workspace: 0 for
    none, None where the routine is asked for that too. LinAlgError if the routine reports a failure.
    """
    length, integer_length = np.zeros(1, like.dtype), np.zeros(1, np.int64)
    counts: tuple[Argument, ...] = ()
    if integers is None:
        counts = (integer_length, -1)
    elif integers:
        counts = (np.empty(integers, np.int64),)
    _call(name, like, *arguments, length, -1, *counts, _integer(0))
    # In float32 the length may have been rounded down.
    size = int(np.nextafter(length[0], np.inf, dtype=like.dtype)) + 1
    if integers is None:
        counts = (np.empty(int(integer_length[0]), np.int64), int(integer_length[0]))
    info = _integer(0)
    _call(name, like, *arguments, np.empty(size, like.dtype), size, *counts, info)
    if info.value:
        raise np.linalg.LinAlgError(f"{name} failed with info {ctypes.c_int32(info.value).value}")


def _call(name: str, like: Matrix, *arguments: Argument) -> None:
    """Call a routine in the precision of a matrix; Fortran takes every argument by its address."""
    routine = _routine(_PRECISION[like.dtype.char] + name)
    # The list holds the integers while the routine reads them.
    values = [_integer(value) if isinstance(value, int) else value for value in arguments]
    routine(*[_address(value) for value in values])


def _address(value: bytes | Matrix | npt.NDArray[np.int64] | Scalar) -> object:
    if isinstance(value, np.ndarray):
        return value.ctypes
    return value if isinstance(value, bytes) else ctypes.byref(value)


@cache
def _routine(name: str) -> Callable[..., None]:
    capsules = cython_blas.__pyx_capi__ if name[1:] in {"gemm", "syrk"} else cython_lapack.__pyx_capi__
    signature: bytes = _capsule_name(capsules[name])
    arguments = [ctypes.c_void_p] * (signature.count(b",") + 1)
    return ctypes.CFUNCTYPE(None, *arguments)(_capsule_pointer(capsules[name], signature))


def _integer(value: int) -> ctypes.c_int64:
    # Routines of 32-bit and of 64-bit integers read and write it alike (little-endian).
    return ctypes.c_int64(value)


def _scalar(value: float, like: Matrix) -> Scalar:
    return ctypes.c_float(value) if like.dtype == np.float32 else ctypes.c_double(value)

"""BLAS and LAPACK routines of scipy's OpenBLAS, called so that every other thread of the process goes on.

scipy.linalg keeps the interpreter's lock while these compute, half a second for the eigenpairs of 2048 x 2048
and longer with the cube: no heartbeat is sent meanwhile, nothing read ahead or written behind. scipy offers
the same routines to compiled code by their addresses (`scipy.linalg.cython_blas`,
`scipy.linalg.cython_lapack`), and a call through ctypes lets go of the lock.
"""

from __future__ import annotations

import numpy as np

from worker.lowrank.fortran import Matrix, call, integer, scalar, solve


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
    times_product = scalar(alpha, left), a, _ld(a), b, _ld(b)
    plus_target = scalar(beta, left), result, m
    call("gemm", left, a_flip, b_flip, m, n, j, *times_product, *plus_target)
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
    one = scalar(1, tall)
    if n:
        call("syrk", tall, b"U", transposed, n, m, one, a, _ld(a), one, into, n)


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
    solve("syevd", matrix, (b"V", b"L", n, vectors, n, values), integers=None)
    return values, vectors


def syevr(matrix: Matrix, count: int) -> tuple[Matrix, Matrix]:
    """Return the `count` largest eigenpairs of a symmetric matrix.

    By multiple relatively robust representations (Dhillon and Parlett 2004). The rest is as for
    :func:`syevd`, with `values` [count] and `vectors` [n, count].
    """
    n = len(matrix)
    values = np.empty(n, matrix.dtype)
    vectors = np.empty((n, count), matrix.dtype, order="F")
    zero, found, support = scalar(0, matrix), integer(0), np.empty(2 * n, np.int64)
    which = zero, zero, n - count + 1, n, zero, found
    out = values, vectors, n, support
    solve("syevr", matrix, (b"V", b"I", b"L", n, matrix.copy(order="F"), n, *which, *out), integers=None)
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
    solve("gesdd", matrix, arguments, integers=8 * p)
    return u, s, vh


def gesvd(matrix: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    """Return the same as :func:`gesdd` by QR iteration (Golub and Reinsch 1970)."""
    m, n = matrix.shape
    u, s, vh = _svd_parts(matrix)
    arguments = (b"S", b"S", m, n, matrix.copy(order="F"), m, s, u, m, vh, min(m, n))
    solve("gesvd", matrix, arguments, integers=0)
    return u, s, vh


def _svd_parts(matrix: Matrix) -> tuple[Matrix, Matrix, Matrix]:
    (m, n), p = matrix.shape, min(matrix.shape)
    u, vh = (np.empty(shape, matrix.dtype, order="F") for shape in ((m, p), (p, n)))
    return u, np.empty(p, matrix.dtype), vh


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

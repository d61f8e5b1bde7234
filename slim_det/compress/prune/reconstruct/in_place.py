"""Matrices that are changed in place, and inverses by LAPACK.

A product of two matrices of thousands of rows makes a new one of hundreds of megabytes. These
functions call BLAS on the matrix that is there, which saves the memory and the time to get it.
"""

from __future__ import annotations

import numpy as np
from scipy.linalg.blas import dgemm, dsyrk, sgemm
from scipy.linalg.lapack import dpotrf, dpotri, dtrtri

_TILE = 512


def add_squares(total: np.ndarray, x: np.ndarray) -> None:
    """``total += x^T x`` in the upper triangle; see `mirror`.

    Args:
        total: float64 [D, D], C-contiguous.
        x: float64 [P, D], C-contiguous.

    Raises:
        ValueError: ``total`` is stored in another order, so BLAS would change a copy.
    """
    _require_rows(total)
    # In BLAS' order of memory the matrix is its own transpose, and its lower triangle the upper.
    dsyrk(1.0, x.T, beta=1.0, c=total.T, lower=1, overwrite_c=1)


def subtract_product(total: np.ndarray, left: np.ndarray, right: np.ndarray) -> None:
    """``total -= left^T right``, all of one type and C-contiguous.

    Args:
        total: [D, M], float32 or float64.
        left: [K, D].
        right: [K, M].

    Raises:
        ValueError: ``total`` is stored in another order, so BLAS would change a copy.
    """
    _require_rows(total)
    gemm = sgemm if total.dtype == np.float32 else dgemm
    gemm(-1.0, right.T, left.T, beta=1.0, c=total.T, trans_b=1, overwrite_c=1)


def _require_rows(total: np.ndarray) -> None:
    if not total.flags.c_contiguous:
        raise ValueError("a matrix that is changed in place has to be stored row by row")


def mirror(matrix: np.ndarray) -> None:
    """Copy the upper triangle of a float64 [D, D] to its lower triangle."""
    for start in range(0, len(matrix), _TILE):
        end = start + _TILE
        tile = matrix[start:end, start:end]
        tile[:] = np.triu(tile) + np.triu(tile, 1).T
        matrix[end:, start:end] = matrix[start:end, end:].T


def with_ridge(matrix: np.ndarray, penalty: float) -> np.ndarray:
    """A copy of a matrix [D, D], C-contiguous, with a number added to its diagonal."""
    system = np.array(matrix, order="C")
    system[np.diag_indices_from(system)] += penalty
    return system


def inverse(matrix: np.ndarray) -> np.ndarray:
    """Inverse of a positive definite float64 [D, D], which is overwritten."""
    factor, failed = dpotrf(matrix.T, lower=1, overwrite_a=1, clean=0)
    if not failed:
        factor, failed = dpotri(factor, lower=1, overwrite_c=1)
    if failed:
        raise np.linalg.LinAlgError("the matrix is not positive definite")
    found: np.ndarray = factor.T
    mirror(found)
    return found


def inverse_root(matrix: np.ndarray) -> np.ndarray:
    """The lower triangular float64 X with ``X A X^T = 1`` for a positive definite A [B, B]."""
    factor, failed = dpotrf(matrix, lower=1, clean=1)
    if not failed:
        factor, failed = dtrtri(factor, lower=1, overwrite_c=1)
    if failed:
        raise np.linalg.LinAlgError("the matrix is not positive definite")
    found: np.ndarray = factor
    return found

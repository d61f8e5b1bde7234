"""Matrices that are changed in place, compared with plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from slim_det.compress.prune.reconstruct.in_place import (
    add_squares,
    inverse,
    mirror,
    subtract_product,
    with_ridge,
)

SIZES = [1, 3, 700]
"""Also more rows than a tile has."""


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize("size", SIZES)
def test_squares_are_added(size: int) -> None:
    """Twice; below the diagonal only after mirroring."""
    total, parts = np.zeros((size, size)), (drawn(5, size), drawn(4, size, seed=1))
    for part in parts:
        add_squares(total, part)
    assert not np.tril(total, -1).any()
    mirror(total)
    np.testing.assert_allclose(total, sum(part.T @ part for part in parts), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_a_product_is_subtracted(kind: Any) -> None:
    total, left, right = (drawn(*s).astype(kind) for s in ((6, 4), (3, 6), (3, 4)))
    expected = total - left.T @ right
    same = total
    subtract_product(total, left, right)
    assert same is total and total.dtype == kind
    np.testing.assert_allclose(total, expected, rtol=0, atol=20 * np.finfo(kind).eps)


@pytest.mark.parametrize("size", SIZES)
def test_an_inverse(size: int) -> None:
    """Its matrix has eigenvalues from 1 on."""
    x = drawn(size, size) / np.sqrt(size)
    matrix = x.T @ x + np.eye(size)
    found = inverse(matrix.copy())
    np.testing.assert_allclose(found @ matrix, np.eye(size), rtol=0, atol=1e-10)
    np.testing.assert_array_equal(found, found.T)


def test_a_matrix_without_inverse() -> None:
    with pytest.raises(np.linalg.LinAlgError, match="not positive definite"):
        inverse(np.diag([1.0, -1.0]))


def test_a_ridge_by_hand() -> None:
    """The matrix itself stays; the copy is stored row by row, as BLAS needs it."""
    matrix = np.array([[1.0, 2.0], [3.0, 4.0]]).T
    found = with_ridge(matrix, 0.5)
    assert found.tolist() == [[1.5, 3.0], [2.0, 4.5]] and found.flags.c_contiguous
    assert matrix.tolist() == [[1.0, 3.0], [2.0, 4.0]]


def test_the_wrong_order_of_memory() -> None:
    """BLAS would change a copy, and nothing would happen."""
    total = np.asfortranarray(drawn(3, 3))
    with pytest.raises(ValueError, match="row by row"):
        add_squares(total, drawn(2, 3))
    with pytest.raises(ValueError, match="row by row"):
        subtract_product(total, drawn(2, 3), drawn(2, 3))

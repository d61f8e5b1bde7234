"""Sums over positions: equal to plain numpy, however the patches arrive."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest

from slim_det.compress.prune.reconstruct import moments as moments_module
from slim_det.compress.prune.reconstruct.moments import Moments, MomentSums

X = np.array([[[1.0, 2.0], [3.0, 4.0]]], np.float32)
Y = np.array([[[1.0], [0.5]]], np.float32)


def summed(*parts: tuple[np.ndarray, np.ndarray]) -> Moments:
    sums = MomentSums()
    for x, y in parts:
        sums.add(x, y)
    found = sums.result()
    assert found is not None
    return found


def assert_equal(found: Moments, expected: Moments, rtol: float) -> None:
    for field in fields(Moments):
        left, right = getattr(found, field.name), getattr(expected, field.name)
        np.testing.assert_allclose(left, right, rtol, rtol, err_msg=field.name)


def plain(x: np.ndarray, y: np.ndarray) -> Moments:
    """The definition, position by position."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    products = [np.einsum("pi,pj->ij", left, right) for left, right in [*zip(x, x), *zip(x, y)]]
    count = len(x)
    return Moments(
        x.shape[1],
        x.sum(1),
        y.sum(1),
        np.array(products[:count]),
        np.array(products[count:]),
        (y**2).sum(1),
    )


def drawn(seed: int, groups: int = 2, positions: int = 57) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(groups, positions, 5)), rng.normal(size=(groups, positions, 3))
    return (x + 2.0).astype(np.float32), (y - 1.0).astype(np.float32)


def test_nothing_was_added() -> None:
    assert MomentSums().result() is None


def test_no_positions() -> None:
    found = summed((X[:, :0], Y[:, :0]))
    assert found.count == 0
    assert not found.xx.any() and found.xy.shape == (1, 2, 1)
    assert found.centred() == found


def test_values_by_hand() -> None:
    found = summed((X, Y))
    assert found.count == 2
    assert found.x.tolist() == [[4.0, 6.0]]
    assert found.y.tolist() == [[1.5]]
    assert found.xx.tolist() == [[[10.0, 14.0], [14.0, 20.0]]]
    assert found.xy.tolist() == [[[2.5], [4.0]]]
    assert found.yy.tolist() == [[1.25]]


def test_centred_by_hand() -> None:
    """Deviations from the means are -1 and +1, and +0.25 and -0.25."""
    found = summed((X, Y)).centred()
    assert (found.count, found.x.tolist(), found.y.tolist()) == (2, [[0.0, 0.0]], [[0.0]])
    assert found.xx.tolist() == [[[2.0, 2.0], [2.0, 2.0]]]
    assert found.xy.tolist() == [[[-0.5], [-0.5]]]
    assert found.yy.tolist() == [[0.125]]


def test_no_targets() -> None:
    found = summed((X, Y[:, :, :0]))
    assert found.xy.shape == (1, 2, 0) and found.yy.shape == (1, 0)
    assert found.centred().xx.tolist() == [[[2.0, 2.0], [2.0, 2.0]]]


def test_equal_to_the_definition() -> None:
    """1e-12: sums of some dozens of products in float64."""
    x, y = drawn(0)
    assert_equal(summed((x, y)), plain(x, y), 1e-12)
    means = [part - part.astype(np.float64).mean(1, keepdims=True) for part in (x, y)]
    assert_equal(summed((x, y)).centred(), plain(*means), 1e-12)


def test_products_are_not_rounded_to_float32() -> None:
    """4097 squared is 16785409, which float32 cannot hold."""
    x = np.full((1, 3, 1), 4097.0, np.float32)
    found = summed((x, x))
    assert found.xx.item() == found.xy.item() == found.yy.item() == 3 * 16785409.0


def test_constants_have_no_spread() -> None:
    """Rounding never makes the centred squares of targets negative."""
    x = np.full((1, 1001, 1), 0.1, np.float32)
    assert 0.0 <= summed((x, x)).centred().yy.item() < 1e-10


@pytest.mark.parametrize("rows", [1, 7, 1024])
def test_independent_of_how_they_arrive(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moments_module, "ROWS", rows)
    x, y = drawn(1)
    edges = [0, 0, 1, 2, 11, 30, 57]
    parts = [(x[:, a:b], y[:, a:b]) for a, b in zip(edges, edges[1:])]
    assert_equal(summed(*parts), plain(x, y), 1e-12)


def test_result_can_be_read_between() -> None:
    x, y = drawn(2)
    sums = MomentSums()
    sums.add(x[:, :20], y[:, :20])
    first = sums.result()
    assert first is not None
    assert_equal(first, plain(x[:, :20], y[:, :20]), 1e-12)
    sums.add(x[:, 20:], y[:, 20:])
    second = sums.result()
    assert second is not None
    assert_equal(second, plain(x, y), 1e-12)
    assert_equal(first, plain(x[:, :20], y[:, :20]), 1e-12)


def test_two_halves_add_up() -> None:
    x, y = drawn(3)
    left, right = summed((x[:, :29], y[:, :29])), summed((x[:, 29:], y[:, 29:]))
    assert_equal(left + right, plain(x, y), 1e-12)

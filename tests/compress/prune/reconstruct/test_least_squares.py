"""Least squares in closed form, compared with numpy on the data themselves."""

from __future__ import annotations

import numpy as np
import pytest

from slim_det.compress.prune.reconstruct.least_squares import (
    intercept,
    solve,
    squared_error,
    without,
)
from slim_det.compress.prune.reconstruct.moments import Moments, MomentSums


def moments_of(x: np.ndarray, y: np.ndarray) -> Moments:
    """Of data [P, D] and [P, M], or with groups in front."""
    sums = MomentSums()
    sums.add(*(part if part.ndim == 3 else part[None] for part in (x, y)))
    found = sums.result()
    assert found is not None
    return found


def problem(
    seed: int, positions: int = 40, inputs: int = 6, outputs: int = 3, noise: float = 0.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets, and the weights that made the targets."""
    rng = np.random.default_rng(seed)
    x, weights = rng.normal(size=(positions, inputs)) + 0.5, rng.normal(size=(inputs, outputs))
    return x, x @ weights + noise * rng.normal(size=(positions, outputs)), weights


def drawn_to(x: np.ndarray, y: np.ndarray, start: np.ndarray, ridge: float) -> np.ndarray:
    """The same minimum by `numpy.linalg.lstsq`: the penalty as more rows of data."""
    root = np.sqrt(ridge * np.square(x).sum() / x.shape[1])
    rows = np.concatenate([x, root * np.eye(x.shape[1])])
    return np.linalg.lstsq(rows, np.concatenate([y, root * start]), rcond=None)[0]


def test_inputs_that_are_zero_keep_the_weights() -> None:
    start = np.array([[[2.0], [-3.0]]])
    moments = moments_of(np.zeros((5, 2)), np.ones((5, 1)))
    assert solve(moments, start, 1e-3).tolist() == start.tolist()
    assert solve(moments, start.astype(np.float32), 1e-3).dtype == np.float64


def test_no_positions_keep_the_weights() -> None:
    start = np.array([[[2.0], [-3.0]]])
    moments = moments_of(np.zeros((0, 2)), np.zeros((0, 1)))
    assert solve(moments, start, 1e-3).tolist() == start.tolist()
    assert intercept(moments, start).tolist() == [[0.0]]
    assert squared_error(moments, start) == 0.0


def test_right_weights_stay_as_they_are() -> None:
    """Rounding: 1e-12 of weights near one."""
    x, y, weights = problem(0)
    found = solve(moments_of(x, y), weights[None], 1e-3)
    np.testing.assert_allclose(found[0], weights, atol=1e-12)


def test_by_hand() -> None:
    """One input: the minimum of (6 - 2 w)^2 + 4 ridge (w - 1)^2 for ridge 1 is w = 2."""
    moments = moments_of(np.array([[2.0]]), np.array([[6.0]]))
    assert solve(moments, np.array([[[1.0]]]), 1.0).item() == pytest.approx(2.0, abs=1e-15)


def test_the_weights_are_not_changed_in_place() -> None:
    x, y, weights = problem(1)
    start = np.zeros_like(weights)[None]
    solve(moments_of(x, y), start, 1e-3)
    assert not start.any()


def test_the_right_weights_are_found() -> None:
    """A ridge of 1e-12 moves them by about as much."""
    x, y, weights = problem(2)
    found = solve(moments_of(x, y), np.zeros_like(weights)[None], 1e-12)
    np.testing.assert_allclose(found[0], weights, atol=1e-10)


@pytest.mark.parametrize("ridge", [1e-9, 1e-3, 1.0])
@pytest.mark.parametrize("positions", [40, 4])
def test_equal_to_more_rows_of_data(ridge: float, positions: int) -> None:
    """Also with fewer positions than unknowns; 1e-6: the condition of H is up to 1 / ridge."""
    x, y, weights = problem(3, positions, noise=0.3)
    start = np.ones_like(weights)
    found = solve(moments_of(x, y), start[None], ridge)
    np.testing.assert_allclose(found[0], drawn_to(x, y, start, ridge), atol=1e-6)


def test_a_small_ridge_is_plain_least_squares() -> None:
    x, y, weights = problem(4, noise=0.3)
    found = solve(moments_of(x, y), np.ones_like(weights)[None], 1e-12)
    np.testing.assert_allclose(found[0], np.linalg.lstsq(x, y, rcond=None)[0], atol=1e-9)


def test_a_large_ridge_keeps_the_weights() -> None:
    """They move by less than |X^T (y - X W)| / penalty."""
    x, y, weights = problem(5)
    start, ridge = np.ones_like(weights), 1e9
    found = solve(moments_of(x, y), start[None], ridge)[0]
    bound = np.abs(x.T @ (y - x @ start)).sum() / (ridge * np.square(x).sum() / x.shape[1])
    assert 0.0 < np.abs(found - start).max() <= bound < 1e-7


def test_fewer_positions_than_unknowns() -> None:
    """The targets are met, and of all weights that meet them these are nearest to the start."""
    x, y, weights = problem(6, positions=3)
    start = np.ones_like(weights)
    found = solve(moments_of(x, y), start[None], 1e-10)[0]
    np.testing.assert_allclose(x @ found, y, atol=1e-6)
    np.testing.assert_allclose(found, start + np.linalg.pinv(x) @ (y - x @ start), atol=1e-5)


@pytest.mark.parametrize("ridge", [1e-18, 1e-300])
def test_a_ridge_below_rounding_errors(ridge: float) -> None:
    """The same input twice: no unique solution, but one that meets the targets."""
    x, y, _ = problem(7, inputs=2)
    x = x[:, [0, 1, 0]]
    found = solve(moments_of(x, y), np.zeros((1, 3, 3)), ridge)[0]
    np.testing.assert_allclose(x @ found, y, atol=1e-6)


def test_groups_do_not_mix() -> None:
    first, second = problem(8, noise=0.3), problem(9, noise=0.3)
    x, y = (np.stack([one, two]) for one, two in list(zip(first, second))[:2])
    start = np.stack([first[2], second[2]])
    found = solve(moments_of(x, y), start, 1e-3)
    for group in range(2):
        alone = solve(moments_of(x[group], y[group]), start[group][None], 1e-3)
        np.testing.assert_allclose(found[group], alone[0], atol=1e-12)


def test_centred_moments_leave_the_intercept_free() -> None:
    """As with a column of ones, which a ridge does not hold back; 1e-9 for a ridge of 1e-12."""
    x, y, weights = problem(10, noise=0.3)
    moments = moments_of(x, y + 7.0)
    found = solve(moments.centred(), np.zeros_like(weights)[None], 1e-12)
    added = intercept(moments, found)
    with_ones = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    expected = np.linalg.lstsq(with_ones, y + 7.0, rcond=None)[0]
    np.testing.assert_allclose(found[0], expected[:-1], atol=1e-9)
    np.testing.assert_allclose(added[0], expected[-1], atol=1e-9)
    left = y + 7.0 - x @ found[0] - added[0]
    np.testing.assert_allclose(left.mean(0), 0.0, atol=1e-12)


def test_intercept_by_hand() -> None:
    """Outputs 2 and 6 for targets 5 and 7: two are missing on average."""
    moments = moments_of(np.array([[1.0], [3.0]]), np.array([[5.0], [7.0]]))
    assert intercept(moments, np.array([[[2.0]]])).tolist() == [[2.0]]


def test_squared_error_by_hand() -> None:
    """3^2 + 1^2 without, 1^2 + 1^2 with the intercept."""
    moments = moments_of(np.array([[1.0], [3.0]]), np.array([[5.0], [7.0]]))
    weights = np.array([[[2.0]]])
    assert squared_error(moments, weights) == 10.0
    assert squared_error(moments, weights, 2.0) == 2.0
    assert squared_error(moments, weights, np.array([[2.0]])) == 2.0


@pytest.mark.parametrize("seed", range(5))
def test_squared_error_of_data(seed: int) -> None:
    """1e-10 of the targets' squares: terms of that size cancel."""
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(2, 30, 4)), rng.normal(size=(2, 30, 3))
    weights, added = rng.normal(size=(2, 4, 3)), rng.normal(size=(2, 3))
    moments = moments_of(x, y)
    for shift in (np.zeros((2, 3)), added):
        expected = np.square(y - x @ weights - shift[:, None]).sum()
        assert squared_error(moments, weights, shift) == pytest.approx(expected, rel=1e-10)


def test_no_error_is_never_negative() -> None:
    """The right weights: what is left is rounding, 1e-12 of the squares of the targets."""
    x, y, weights = problem(11, positions=500)
    error = squared_error(moments_of(x, y), weights[None])
    assert 0.0 <= error <= 1e-12 * np.square(y).sum()


@pytest.mark.parametrize("ridge", [1e-6, 1e-3, 0.1, 1.0])
def test_the_solution_is_never_worse(ridge: float) -> None:
    """Of its own data, whatever the ridge: the start is one of the candidates."""
    for seed in range(20):
        x, y, weights = problem(seed, positions=8, noise=1.0)
        start = weights + np.random.default_rng(seed).normal(size=weights.shape)
        moments = moments_of(x, y)
        found = solve(moments, start[None], ridge)
        assert squared_error(moments, found) < squared_error(moments, start[None])


@pytest.mark.parametrize("ridge", [1e-8, 0.1])
def test_without_some_inputs(ridge: float) -> None:
    """The minimum that the data themselves have, with the former outputs as targets."""
    x, y, weights = problem(7)
    gone = np.array([False, True, False, False, True, False])
    found = without(x.T @ x, weights, gone, ridge)
    expected = drawn_to(x[:, ~gone], y, weights[~gone], ridge)
    np.testing.assert_allclose(found[~gone], expected, rtol=1e-7)
    assert not found[gone].any()


def test_without_none_or_all() -> None:
    x, _, weights = problem(8)
    np.testing.assert_array_equal(without(x.T @ x, weights, np.zeros(6, bool), 1e-4), weights)
    assert not without(x.T @ x, weights, np.ones(6, bool), 1e-4).any()
    blank = without(np.zeros((6, 6)), weights, np.arange(6) < 2, 1e-4)
    np.testing.assert_array_equal(blank[2:], weights[2:])
    assert not blank[:2].any()

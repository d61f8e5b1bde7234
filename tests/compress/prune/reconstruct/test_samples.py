"""Least squares in front of an activation that clips."""

from __future__ import annotations

import numpy as np
import pytest

from slim_det.compress.prune.reconstruct.branch import Limits
from slim_det.compress.prune.reconstruct.intercept import Place
from slim_det.compress.prune.reconstruct.samples import Samples, SampleSums

PLACE = Place("bias", +1)
RIDGE = 1e-8


def limits(channels: int, low: float = 0.0, high: float = np.inf) -> Limits:
    return Limits(np.full((1, 1, channels), low), np.full((1, 1, channels), high))


def drawn(seed: int, positions: int = 400, inputs: int = 6, outputs: int = 3) -> tuple:
    """Inputs of which half are gone, and outputs of all: [1, P, D / 2], [1, P, M], start."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(positions, inputs)) @ rng.normal(size=(inputs, inputs))
    weights = rng.normal(size=(inputs, outputs))
    half = inputs // 2
    y = (x @ weights + rng.normal(size=outputs)).astype(np.float32)
    return x[None, :, :half].astype(np.float32), y[None], weights[None, :half]


def samples(x: np.ndarray, y: np.ndarray, clip: Limits | None) -> Samples:
    """Added in several parts, as images come."""
    sums = SampleSums()
    for some in np.array_split(np.arange(x.shape[1]), 7):
        sums.add(x[:, some], y[:, some], clip)
    found = sums.result()
    assert found is not None
    return found


def passed_error(x: np.ndarray, y: np.ndarray, weights: np.ndarray, added: np.ndarray) -> float:
    """Squared error behind a ReLU, from the data."""
    return float(np.square(np.maximum(x @ weights + added[:, None], 0) - np.maximum(y, 0)).sum())


def test_nothing_was_added() -> None:
    assert SampleSums().result() is None


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("place", [PLACE, None], ids=["intercept", "none"])
def test_more_passes_a_relu_as_before(seed: int, place: Place | None) -> None:
    x, y, start = drawn(seed)
    plain, followed = samples(x, y, None), samples(x, y, limits(3))
    found, with_limits = (one.solved(start, RIDGE, place) for one in (plain, followed))
    assert passed_error(x, y, *with_limits) < passed_error(x, y, *found)
    assert followed.error(*with_limits) < 0.98 * followed.error(*found)
    assert plain.error(*found) < plain.error(*with_limits)


def test_the_error_is_that_of_what_should_pass() -> None:
    """By hand: targets -1 and 2 behind a ReLU; outputs -3 and 2 are right, 1 and -1 are not."""
    x, y = np.array([[[1.0], [0.0]]], np.float32), np.array([[[-1.0], [2.0]]], np.float32)
    one = samples(x, y, limits(1))
    for weight, added, error in ((-5.0, 2.0, 0.0), (2.0, -1.0, 10.0), (-2.0, 2.0, 0.0)):
        found = one.error(np.array([[[weight]]]), np.array([[added]]))
        assert found == pytest.approx(error, abs=1e-9)
    assert one.relative(4.0) == pytest.approx(2.0)  # of 0 and 2, whose squared deviation is 2


def test_what_is_always_clipped_has_no_error() -> None:
    x, y, start = drawn(0)
    one = samples(x, -np.abs(y), limits(3))
    solved = one.solved(start, RIDGE, PLACE)
    assert one.relative(one.error(*solved)) == 0.0
    assert one.relative(1.0) == 1.0


def test_limits_that_nothing_reaches_change_nothing() -> None:
    x, y, start = drawn(1)
    plain, wide = samples(x, y, None), samples(x, y, limits(3, -1e6, 1e6))
    for a, b in zip(plain.solved(start, RIDGE, PLACE), wide.solved(start, RIDGE, PLACE)):
        np.testing.assert_allclose(a, b, rtol=1e-9)
    assert plain.error(start) == pytest.approx(wide.error(start), rel=1e-9)


@pytest.mark.parametrize("clip", [None, limits(3)], ids=["plain", "clipped"])
def test_two_sets_of_images_together(clip: Limits | None) -> None:
    x, y, start = drawn(2)
    whole = samples(x, y, clip)
    parts = samples(x[:, :100], y[:, :100], clip) + samples(x[:, 100:], y[:, 100:], clip)
    for a, b in zip(whole.solved(start, RIDGE, PLACE), parts.solved(start, RIDGE, PLACE)):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
    assert whole.relative(whole.error(start)) == pytest.approx(parts.relative(parts.error(start)))


def test_groups_have_their_own_limits() -> None:
    """The second group passes everything, and is solved as if there were no limits."""
    (x, y, start), (x2, y2, start2) = drawn(3), drawn(4)
    both = [np.concatenate(pair) for pair in ((x, x2), (y, y2), (start, start2))]
    low = np.concatenate([np.zeros((1, 1, 3)), np.full((1, 1, 3), -np.inf)])
    high = np.full((2, 1, 3), np.inf)
    found, _ = samples(*both[:2], Limits(low, high)).solved(both[2], RIDGE, PLACE)
    first, _ = samples(x, y, limits(3)).solved(start, RIDGE, PLACE)
    second, _ = samples(x2, y2, None).solved(start2, RIDGE, PLACE)
    np.testing.assert_allclose(found, np.concatenate([first, second]), rtol=1e-6)


def test_what_passes_nothing_has_no_error_without_an_intercept() -> None:
    """Followed targets are float32; their rounding is no error."""
    for seed in range(5):
        x, y, start = drawn(seed)
        one = samples(np.abs(x), -np.abs(y), limits(3))
        assert one.relative(one.error(-np.abs(start))) == 0.0


def test_limits_for_all_or_for_none() -> None:
    x, y, _ = drawn(0)
    sums = SampleSums()
    sums.add(x, y, limits(3))
    with pytest.raises(ValueError, match="some samples have limits and some have none"):
        sums.add(x, y, None)

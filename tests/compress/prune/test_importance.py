"""Scores on matrices small enough to work out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from slim_det.compress.prune.importance import CRITERIA, smallest

FILTERS = np.array([[3.0, -4.0], [0.0, 0.0], [1.0, 1.0], [-6.0, 8.0]])
SCALE = np.array([0.5, -2.0, 0.0, 1.0])


def score(criterion: str, filters: np.ndarray = FILTERS, seed: int = 0) -> np.ndarray:
    return CRITERIA[criterion](filters, SCALE, np.random.default_rng(seed))


def distances_one_by_one(filters: np.ndarray) -> np.ndarray:
    return np.array([sum(np.linalg.norm(a - b) for b in filters) for a in filters])


def test_l1_norm_is_the_sum_of_absolute_weights() -> None:
    assert score("l1_norm").tolist() == [7.0, 0.0, 2.0, 14.0]


def test_l2_norm_is_the_euclidean_length() -> None:
    assert score("l2_norm").tolist() == pytest.approx([5.0, 0.0, np.sqrt(2.0), 10.0])


def test_bn_scale_reads_the_batch_norm_and_not_the_filters() -> None:
    assert score("bn_scale").tolist() == [0.5, 2.0, 0.0, 1.0]
    assert score("bn_scale", FILTERS * 7.0).tolist() == [0.5, 2.0, 0.0, 1.0]


def test_bn_scale_without_a_batch_norm_is_an_error() -> None:
    with pytest.raises(ValueError, match="batch norm"):
        CRITERIA["bn_scale"](FILTERS, None, np.random.default_rng(0))


def test_fpgm_of_points_on_a_line() -> None:
    """Distances 0-1-2 and 10: the second point is nearest to all others."""
    line = np.array([[0.0], [1.0], [2.0], [10.0]])
    assert score("fpgm", line).tolist() == pytest.approx([13.0, 11.0, 11.0, 27.0])


@pytest.mark.parametrize("shape", [(1, 3), (2, 1), (7, 27), (40, 9)])
def test_fpgm_is_the_sum_over_all_pairs(shape: tuple[int, int]) -> None:
    filters = np.random.default_rng(1).normal(size=shape)
    expected = distances_one_by_one(filters)
    np.testing.assert_allclose(score("fpgm", filters), expected, rtol=1e-9, atol=1e-12)


def test_fpgm_prefers_other_channels_than_a_norm() -> None:
    """The shortest filter lies alone; those in the crowd are the ones to spare."""
    filters = np.array([[4.9, 0.0], [5.0, 0.0], [5.2, 0.0], [5.5, 0.0], [0.1, 0.0]])
    assert smallest(score("l1_norm", filters), 1).tolist() == [4]
    assert smallest(score("fpgm", filters), 1).tolist() == [1]


def test_fpgm_of_equal_filters_is_exactly_zero() -> None:
    filters = np.repeat(np.random.default_rng(2).normal(size=(1, 18)), 5, axis=0)
    assert score("fpgm", filters).tolist() == [0.0] * 5


def test_random_follows_its_seed() -> None:
    assert score("random", seed=3).tolist() == score("random", seed=3).tolist()
    assert score("random", seed=3).tolist() != score("random", seed=4).tolist()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_gives_one_number_a_channel(criterion: str) -> None:
    scores = score(criterion)
    assert scores.shape == (4,)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()


def test_smallest_of_nothing() -> None:
    assert smallest(np.array([2.0, 1.0]), 0).tolist() == []


def test_smallest_comes_in_the_order_of_the_channels() -> None:
    assert smallest(np.array([3.0, 9.0, 1.0, 2.0]), 3).tolist() == [0, 2, 3]


def test_of_equal_scores_the_lower_index_is_chosen() -> None:
    assert smallest(np.array([1.0, 1.0, 1.0, 1.0]), 2).tolist() == [0, 1]
    assert smallest(np.array([2.0, 1.0, 5.0, 1.0, 1.0]), 2).tolist() == [1, 3]


def test_every_layer_keeps_a_channel() -> None:
    """Channels 0 and 1 belong to one layer, 2 to 4 to another, all to a third."""
    layers = np.array([[1, 1, 0, 0, 0], [0, 0, 1, 1, 1], [1, 1, 1, 1, 1]], bool)
    scores = np.array([1.0, 2.0, 3.0, 4.0, 5.0])
    assert smallest(scores, 1, layers).tolist() == [0]
    assert smallest(scores, 2, layers).tolist() == [0, 2]
    assert smallest(scores, 3, layers).tolist() == [0, 2, 3]
    assert smallest(scores, 4, layers).tolist() == [0, 2, 3]
    assert smallest(scores[::-1], 3, layers).tolist() == [1, 3, 4]
    assert layers.all(axis=1).tolist() == [False, False, True], "the argument is not changed"

"""The bootstrap on scores whose spread is known."""

from __future__ import annotations

import numpy as np
import pytest

from slim_det.core.errors import ConfigError, DataError, SensitivityError
from slim_det.planning.sensitivity.bootstrap import bootstrap_losses, relative_loss, resamples


@pytest.mark.parametrize(
    ("baseline", "ap", "loss"),
    [(0.5, 0.5, 0.0), (0.5, 0.25, 0.5), (0.5, 0.0, 1.0), (0.5, 0.6, -0.2)],
)
def test_relative_loss(baseline: float, ap: float, loss: float) -> None:
    assert relative_loss(baseline, ap) == pytest.approx(loss, abs=1e-12)


def test_no_images() -> None:
    with pytest.raises(DataError, match="no images"):
        bootstrap_losses(np.mean, np.mean, num_images=0, samples=5, seed=0)


def test_no_samples() -> None:
    with pytest.raises(ConfigError, match="0 samples"):
        bootstrap_losses(np.mean, np.mean, num_images=5, samples=0, seed=0)


def test_an_untrained_model_has_no_loss() -> None:
    with pytest.raises(SensitivityError, match="all 7 samples"):
        bootstrap_losses(lambda _: 0.0, lambda _: 0.0, num_images=5, samples=7, seed=0)


def test_one_image_leaves_no_doubt() -> None:
    assert bootstrap_losses(lambda _: 0.3, lambda _: 0.4, 1, 20, 0) == pytest.approx((0.25, 0.25))


def test_images_are_paired() -> None:
    """A cut that costs every image a quarter costs every sample a quarter, however it is drawn."""
    scores = np.linspace(0.01, 1, 50)
    band = bootstrap_losses(
        lambda images: float(0.75 * scores[images].mean()),
        lambda images: float(scores[images].mean()),
        num_images=50,
        samples=200,
        seed=3,
    )
    assert band == pytest.approx((0.25, 0.25), abs=1e-12)


def test_the_band_of_a_mean_is_the_normal_one() -> None:
    """Half of 400 images lose everything: a binomial share, 0.5 +- 1.645 * sqrt(0.25 / 400)."""
    lost = np.arange(400) % 2
    low, high = bootstrap_losses(
        lambda images: float(1 - lost[images].mean()), lambda _: 1.0, 400, 4000, seed=0
    )
    assert (low, high) == pytest.approx((0.5 - 0.0411, 0.5 + 0.0411), abs=0.004)


def test_samples_without_a_baseline_are_left_out() -> None:
    """One of two images has objects: a quarter of the samples draws the other one twice."""
    seen: list[bool] = []

    def baseline(images: np.ndarray) -> float:
        seen.append(bool((images == 0).any()))
        return 0.5 * seen[-1]

    band = bootstrap_losses(lambda _: 0.5, baseline, num_images=2, samples=400, seed=0)
    assert 60 < seen.count(False) < 140
    assert band == (0.0, 0.0)


def test_draws_are_with_replacement_and_of_every_image() -> None:
    draws = list(resamples(num_images=10, samples=50, seed=0))
    assert all(draw.shape == (10,) and 0 <= draw.min() and draw.max() < 10 for draw in draws)
    assert {int(image) for draw in draws for image in draw} == set(range(10))
    assert any(len(set(draw.tolist())) < 10 for draw in draws)


def test_a_seed_decides_the_draws() -> None:
    one, again, other = (np.stack(list(resamples(20, 5, seed))) for seed in (1, 1, 2))
    assert (one == again).all()
    assert (one != other).any()
    assert (np.stack(list(resamples(20, 3, 1))) == one[:3]).all()

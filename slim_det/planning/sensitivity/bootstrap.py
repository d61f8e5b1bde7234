"""How certain a loss is: a paired bootstrap over the images of the evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from slim_det.core.errors import ConfigError, DataError, SensitivityError

PERCENTILES = (5.0, 95.0)


def relative_loss(baseline: float, ap: float) -> float:
    """The share of the baseline that is lost; negative where the AP has risen.

    The sensitivity of Li et al. 2017, "Pruning filters for efficient ConvNets", as PaddleSlim 1.x
    normalizes it. The baseline is above 0.
    """
    return (baseline - ap) / baseline


def resamples(num_images: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Draw the images of each sample with replacement; the same seed gives the same samples.

    Yields:
        Indices of images, int64 [num_images].

    Raises:
        ConfigError: There is no sample.
        DataError: There is no image.
    """
    if samples < 1:
        raise ConfigError(f"bootstrap: {samples} samples; expected 1 or more")
    if num_images < 1:
        raise DataError("bootstrap: there are no images to draw from")
    generator = np.random.default_rng(seed)
    for _ in range(samples):
        yield generator.integers(num_images, size=num_images)


def bootstrap_losses(
    ap_of: Callable[[np.ndarray], float],
    baseline_of: Callable[[np.ndarray], float],
    num_images: int,
    samples: int,
    seed: int,
) -> tuple[float, float]:
    """The 5th and 95th percentile of a loss over resampled images.

    The unpruned and the pruned model are scored on the same sample, so how hard its images are
    cancels out of the loss (Efron and Tibshirani 1993, "An introduction to the bootstrap").
    Calls with the same seed draw the same samples, so losses of several cuts can be compared.

    Args:
        ap_of: AP of the pruned model, 0 to 1, on the images with these indices, int64
            [num_images]; an index that occurs twice counts as two images.
        baseline_of: The same for the unpruned model. Worth caching where several cuts are scored;
            samples with a baseline of 0 are left out.
        num_images: Number of images in the evaluation.
        samples: Number of resamplings.
        seed: 0 or more.

    Raises:
        ConfigError: There is no sample.
        DataError: There is no image.
        SensitivityError: The baseline is 0 in every sample.
    """
    losses = []
    for images in resamples(num_images, samples, seed):
        baseline = baseline_of(images)
        if baseline > 0:
            losses.append(relative_loss(baseline, ap_of(images)))
    if not losses:
        raise SensitivityError(
            f"bootstrap: the baseline is 0 in all {samples} samples, so there is no loss; "
            "expected a trained model and images with objects"
        )
    low, high = np.percentile(losses, PERCENTILES)
    return float(low), float(high)

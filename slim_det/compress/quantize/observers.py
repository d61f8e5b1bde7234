"""Observers: from the statistics of an activation to its range."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import BeforeValidator, Field, Strict

from slim_det.compress.quantize.rounding import MIN_RANGE
from slim_det.compress.quantize.statistics import Statistics
from slim_det.core.errors import nearest
from slim_det.core.schema import validated
from slim_det.graph.integers import levels

MOVING_RATE = 0.9
"""Weight of the previous average at each image in the moving average."""

# Ranges that ``mse`` and ``emd`` try, as shares of the largest value.
_SCAN = np.arange(0.30, 1.0001, 0.01)

_KL_STEP = 8
_KL_FIRST = 128


def absolute_max(statistics: Statistics, bits: int, percent: float) -> float:
    """The largest absolute value of all images: nothing is clipped."""
    return statistics.largest


def mean_max(statistics: Statistics, bits: int, percent: float) -> float:
    """The mean of the images' largest absolute values."""
    return float(np.mean(statistics.maxima))


def moving_average(statistics: Statistics, bits: int, percent: float) -> float:
    """A moving average of the images' largest values that starts with the first, as in training."""
    return functools.reduce(
        lambda kept, seen: MOVING_RATE * kept + (1 - MOVING_RATE) * seen, statistics.maxima
    )


def percentile(statistics: Statistics, bits: int, percent: float) -> float:
    """The smallest range, in whole bins, that holds a share ``percent`` of all values."""
    # The tolerance is for the rounding of `percent`, so that the last bin is not missed.
    wanted = percent * statistics.count * (1 - 1e-12)
    last = int(np.searchsorted(np.cumsum(statistics.histogram), wanted))
    return min((last + 1) * statistics.width, statistics.largest)


def squared_error(statistics: Statistics, bits: int, percent: float) -> float:
    """The range with the smallest mean squared error of rounding and clipping."""

    def cost(counts: np.ndarray, values: np.ndarray, rounded: np.ndarray) -> float:
        return float((counts * np.square(values - rounded)).sum())

    return _scan(statistics, bits, cost)


def earth_mover(statistics: Statistics, bits: int, percent: float) -> float:
    """The range whose rounded values differ least in mean and in standard deviation.

    PaddleSlim calls the sum of these two differences the earth mover's distance. The true distance
    would be the mean absolute error, which clips rare large values that a detector needs.
    """

    def cost(counts: np.ndarray, values: np.ndarray, rounded: np.ndarray) -> float:
        (mean, deviation), (mean_rounded, deviation_rounded) = (
            _moments(counts, x) for x in (values, rounded)
        )
        return abs(mean - mean_rounded) + abs(deviation - deviation_rounded)

    return _scan(statistics, bits, cost)


def divergence(statistics: Statistics, bits: int, percent: float) -> float:
    """The range with the smallest Kullback-Leibler divergence (Migacz, GTC 2017).

    It compares the clipped distribution, with all clipped values in its last bin, to the same in
    as many levels as an integer has. Zeros are exact at any range; so that they do not outweigh the
    rest, the first bin gets the count of the second (as in TensorRT).
    """
    counts = statistics.histogram.astype(np.float64)
    used = int(np.flatnonzero(counts)[-1]) + 1
    counts = counts[:used].copy()
    if used > 1:
        counts[0] = counts[1]
    beyond = counts.sum() - np.cumsum(counts)
    ends = [*range(max(_KL_FIRST, levels(bits) + 1), used, _KL_STEP), used]
    found = [_kl(counts[:end], beyond[end - 1], levels(bits) + 1) for end in ends]
    # The widest of equal ones: nothing is gained by clipping.
    best = ends[len(ends) - 1 - int(np.argmin(found[::-1]))]
    return statistics.largest if best == used else (best + 0.5) * statistics.width


OBSERVERS: dict[str, Callable[[Statistics, int, float], float]] = {
    "abs_max": absolute_max,
    "avg": mean_max,
    "moving_average": moving_average,
    "kl": divergence,
    "hist": percentile,
    "mse": squared_error,
    "emd": earth_mover,
}


def _known_observer(name: Any) -> Any:
    if not isinstance(name, str) or name not in OBSERVERS:
        raise ValueError(f"unknown observer {name!r}{nearest(str(name), OBSERVERS)}")
    return name


@dataclass(frozen=True)
class PtqOptions:
    """How post-training quantization finds the ranges.

    Attributes:
        observer: One of `OBSERVERS`.
        images: Number of calibration images.
        percent: Share of the values that the observer ``hist`` keeps.
        bias_correction: Remove the mean error of every channel.
    """

    observer: Annotated[str, BeforeValidator(_known_observer)] = "hist"
    images: Annotated[
        int, Strict(), Field(ge=1, description="a whole number of images, 1 or more")
    ] = 32
    percent: Annotated[
        float, Strict(), Field(gt=0, le=1, description="a share above 0 and at most 1")
    ] = 0.99999
    bias_correction: Annotated[bool, Strict(), Field(description="true or false")] = False

    def check(self, where: str = "") -> None:
        """Check every option.

        Args:
            where: Prefix of the names in messages: ``--`` on the command line.

        Raises:
            ConfigError: One is not valid.
        """
        validated(PtqOptions, asdict(self), where)


def input_range(
    observer: str, statistics: Statistics, bits: int, percent: float = PtqOptions.percent
) -> float:
    """The range of an activation.

    Args:
        observer: One of `OBSERVERS`.
        statistics: Of one image at least.
        bits: Bits of the simulated integer.
        percent: See `PtqOptions`.

    Returns:
        The range, at least `MIN_RANGE`.

    Raises:
        ConfigError: The observer is unknown, or ``percent`` is no share.
    """
    PtqOptions(observer, percent=percent).check()
    if statistics.largest <= MIN_RANGE:
        return MIN_RANGE
    return max(float(OBSERVERS[observer](statistics, bits, percent)), MIN_RANGE)


# Takes counts, the values that were counted, and the rounded values.
_Cost = Callable[[np.ndarray, np.ndarray, np.ndarray], float]


def _scan(statistics: Statistics, bits: int, cost: _Cost) -> float:
    """The range with the smallest cost, among shares of the largest value."""
    bins = np.flatnonzero(statistics.histogram)
    counts = statistics.histogram[bins]
    values = np.minimum((bins + 0.5) * statistics.width, statistics.largest)
    ranges = _SCAN * statistics.largest
    costs = []
    for step in ranges / levels(bits):
        rounded = np.minimum(np.rint(values / step), levels(bits)) * step
        costs.append(cost(counts, values, rounded))
    # The widest of equal ones: nothing is gained by clipping.
    return float(ranges[::-1][int(np.argmin(costs[::-1]))])


def _moments(counts: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of counted values."""
    mean = np.average(values, weights=counts)
    return float(mean), float(np.sqrt(np.average(np.square(values - mean), weights=counts)))


def _kl(counts: np.ndarray, beyond: float, parts: int) -> float:
    """Divergence of the kept bins, with the clipped values, from their form in ``parts`` levels."""
    clipped = counts.copy()
    clipped[-1] += beyond
    edges = np.arange(parts) * counts.size // parts
    sums = np.add.reduceat(counts, edges)
    filled = np.add.reduceat((counts > 0).astype(np.float64), edges)
    level = np.repeat(
        np.divide(sums, filled, out=np.zeros_like(sums), where=filled > 0),
        np.diff(np.append(edges, counts.size)),
    )
    present = clipped > 0
    model = np.where(counts > 0, level, 0.0)[present]
    if (model <= 0).any():
        return float("inf")
    real = clipped[present] / clipped.sum()
    return float((real * np.log(real / (model / model.sum()))).sum())

"""From the statistics of an activation to its range; pure functions of numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from slim_det.compress.quantize.rounding import MIN_RANGE
from slim_det.compress.quantize.statistics import Statistics
from slim_det.core.errors import ConfigError, nearest
from slim_det.graph.integers import levels

MOVING_RATE = 0.9
"""What the moving average keeps of itself at each image."""

_SCAN = np.arange(0.30, 1.0001, 0.01)
"""Ranges that ``mse`` and ``emd`` try, as shares of the largest value."""

_KL_STEP = 8
_KL_FIRST = 128


def absolute_max(statistics: Statistics, bits: int, percent: float) -> float:
    """The largest absolute value of all images: nothing is clipped."""
    return statistics.largest


def mean_max(statistics: Statistics, bits: int, percent: float) -> float:
    """The mean of the images' largest absolute values."""
    return float(np.mean(statistics.maxima))


def moving_average(statistics: Statistics, bits: int, percent: float) -> float:
    """A moving average of the images' largest values, started with the first: as in training."""
    return functools.reduce(
        lambda kept, seen: MOVING_RATE * kept + (1 - MOVING_RATE) * seen, statistics.maxima
    )


def percentile(statistics: Statistics, bits: int, percent: float) -> float:
    """The smallest range, in whole bins, that holds a share ``percent`` of all values."""
    wanted = percent * statistics.count
    # A sum of counts may miss 100 % of them by the rounding of `percent` only.
    last = int(np.searchsorted(np.cumsum(statistics.histogram), wanted * (1 - 1e-12)))
    return min((last + 1) * statistics.width, statistics.largest)


def squared_error(statistics: Statistics, bits: int, percent: float) -> float:
    """The range with the smallest mean squared error of rounding and clipping."""

    def cost(counts: np.ndarray, values: np.ndarray, rounded: np.ndarray) -> float:
        return float((counts * np.square(values - rounded)).sum())

    return _scan(statistics, bits, cost)


def earth_mover(statistics: Statistics, bits: int, percent: float) -> float:
    """The range whose rounded values differ least in mean and in standard deviation.

    That sum of two differences is what PaddleSlim calls the earth mover's distance. The distance
    itself is here the mean absolute error, as rounding keeps the order of values; it hardly counts
    rare large values, and clips what a detector needs.
    """

    def cost(counts: np.ndarray, values: np.ndarray, rounded: np.ndarray) -> float:
        (mean, deviation), (mean_rounded, deviation_rounded) = (
            _moments(counts, x) for x in (values, rounded)
        )
        return abs(mean - mean_rounded) + abs(deviation - deviation_rounded)

    return _scan(statistics, bits, cost)


def divergence(statistics: Statistics, bits: int, percent: float) -> float:
    """The range with the smallest Kullback-Leibler divergence (Migacz, GTC 2017).

    The clipped distribution, what is beyond it moved to its last bin, against the same in as
    many levels as an integer has. Zeros are exact at any range; the first bin is counted as the
    second, so that they do not hide the rest (as TensorRT does).
    """
    counts = statistics.histogram.astype(np.float64)
    used = int(np.flatnonzero(counts)[-1]) + 1
    counts = counts[:used].copy()
    if used > 1:
        counts[0] = counts[1]
    whole = counts.sum()
    beyond = whole - np.cumsum(counts)
    ends = [*range(max(_KL_FIRST, levels(bits) + 1), used, _KL_STEP), used]
    found = [_kl(counts[:end], beyond[end - 1], levels(bits) + 1) for end in ends]
    # Of equal ones the widest: nothing is gained by clipping.
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


def input_range(
    observer: str, statistics: Statistics, bits: int, percent: float = 0.99999
) -> float:
    """The range of an activation.

    Args:
        observer: One of `OBSERVERS`.
        statistics: Of one image at least.
        bits: Of an integer.
        percent: Share of the values that ``hist`` keeps, 0 to 1.

    Returns:
        The range, positive; that of nothing but zeros is the smallest there is.

    Raises:
        ConfigError: The observer is unknown, or ``percent`` is no share.
    """
    check_observer(observer)
    check_percent(percent)
    if statistics.largest <= MIN_RANGE:
        return MIN_RANGE
    return max(float(OBSERVERS[observer](statistics, bits, percent)), MIN_RANGE)


def check_observer(name: Any, where: str = "observer") -> str:
    """An observer's name.

    Raises:
        ConfigError: It is unknown.
    """
    if not isinstance(name, str) or name not in OBSERVERS:
        raise ConfigError(f"{where}: unknown observer {name!r}{nearest(str(name), OBSERVERS)}")
    return name


def check_percent(value: Any, where: str = "percent") -> float:
    """A share of values.

    Raises:
        ConfigError: It is not above 0 and at most 1.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 < value <= 1:
        raise ConfigError(
            f"{where}: {value!r} is not valid; expected a share above 0 and at most 1"
        )
    return float(value)


_Cost = Callable[[np.ndarray, np.ndarray, np.ndarray], float]
"""Of counts, the values that were counted, and what they are rounded to."""


def _scan(statistics: Statistics, bits: int, cost: _Cost) -> float:
    """The range, of shares of the largest value, whose rounding costs least."""
    bins = np.flatnonzero(statistics.histogram)
    counts = statistics.histogram[bins]
    values = np.minimum((bins + 0.5) * statistics.width, statistics.largest)
    ranges = _SCAN * statistics.largest
    costs = []
    for step in ranges / levels(bits):
        rounded = np.minimum(np.rint(values / step), levels(bits)) * step
        costs.append(cost(counts, values, rounded))
    # Of equal ones the widest: nothing is gained by clipping.
    return float(ranges[::-1][int(np.argmin(costs[::-1]))])


def _moments(counts: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation of counted values."""
    mean = np.average(values, weights=counts)
    return float(mean), float(np.sqrt(np.average(np.square(values - mean), weights=counts)))


def _kl(counts: np.ndarray, beyond: float, parts: int) -> float:
    """Divergence of a clipped distribution from its form in so many levels.

    Args:
        counts: Of the bins that are kept.
        beyond: Number of values that are clipped.
        parts: Levels, zero included.
    """
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

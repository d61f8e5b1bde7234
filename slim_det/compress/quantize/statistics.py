"""What a calibration keeps of an activation: the maximum of every image, and a histogram."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

BINS = 4096
"""Bins of a histogram. The largest value lies in the upper half, so 2048 or more are in use."""

SMALLEST_LIMIT = 2.0**-40
"""The histogram of smaller values has this limit, so that no scale overflows."""

_CHUNK = 1 << 16


def _no_counts() -> np.ndarray:
    return np.zeros(BINS, np.int64)


@dataclass
class Statistics:
    """Absolute values of one activation over the images of a calibration.

    The bins cover [0, limit) with a limit that is a power of two, and doubles when a value reaches
    it: pairs of bins are then added. So one pass is enough, every count is exact, and two
    statistics can be added whatever they have seen.

    Attributes:
        maxima: Largest absolute value of every image, in their order.
        histogram: int64 [BINS], counts of absolute values; zeros are in the first bin.
        limit: Upper end of the last bin; 0 as long as there are only zeros.
    """

    maxima: list[float] = field(default_factory=list)
    histogram: np.ndarray = field(default_factory=_no_counts)
    limit: float = 0.0

    @property
    def width(self) -> float:
        """Width of a bin."""
        return self.limit / BINS

    @property
    def largest(self) -> float:
        """Largest absolute value of all; 0 of nothing."""
        return max(self.maxima, default=0.0)

    @property
    def count(self) -> int:
        """Number of values."""
        return int(self.histogram.sum())

    def add(self, values: np.ndarray) -> None:
        """Count a batch.

        Args:
            values: float [N, ...]; each of the N is an image of its own.

        Raises:
            ValueError: A value is not finite.
        """
        for image in values:
            if image.size == 0:
                continue
            flat = np.ascontiguousarray(image, np.float32).reshape(-1)
            largest = float(max(flat.max(), -flat.min()))
            if not np.isfinite(largest):
                raise ValueError("a value is not finite")
            self.maxima.append(largest)
            self._widen(_limit_above(largest))
            self._count(flat)

    def merge(self, other: Statistics) -> Statistics:
        """The statistics of the images of both, this one's first."""
        merged = Statistics([*self.maxima, *other.maxima], self.histogram.copy(), self.limit)
        merged._widen(other.limit)
        counts = other.histogram
        if other.limit:
            counts = _halved(counts, other.limit, merged.limit)
        merged.histogram = merged.histogram + counts
        return merged

    def _widen(self, limit: float) -> None:
        if limit <= self.limit:
            return
        if self.limit:
            self.histogram = _halved(self.histogram, self.limit, limit)
        self.limit = limit

    def _count(self, flat: np.ndarray) -> None:
        if not self.limit:
            self.histogram[0] += flat.size
            return
        scale = np.float32(BINS / self.limit)
        # Pieces that stay in the cache of the processor take a third of the time of the whole.
        for start in range(0, flat.size, _CHUNK):
            piece = flat[start : start + _CHUNK] * scale
            np.abs(piece, out=piece)
            self.histogram += np.bincount(piece.astype(np.intp), minlength=BINS)


def _limit_above(largest: float) -> float:
    """The smallest power of two above a value; 0 for 0."""
    if largest == 0:
        return 0.0
    return float(max(2.0 ** int(np.frexp(largest)[1]), SMALLEST_LIMIT))


def _halved(histogram: np.ndarray, limit: float, wider: float) -> np.ndarray:
    """The same counts in bins of a limit that is 2, 4, ... times as high."""
    ratio = int(min(wider / limit, BINS))
    sums = histogram.reshape(-1, ratio).sum(axis=1)
    return np.concatenate([sums, np.zeros(BINS - sums.size, np.int64)])

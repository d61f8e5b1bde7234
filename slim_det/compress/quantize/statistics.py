"""Statistics of an activation in a calibration: the maximum of every image, and a histogram."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

BINS = 4096
"""Bins of a histogram. The largest value lies in the upper half, so 2048 or more are in use."""

SMALLEST_LIMIT = 2.0**-40
"""Minimal limit of a histogram, so that no scale overflows."""

_CHUNK = 1 << 16


@dataclass
class Statistics:
    """Absolute values of one activation over the images of a calibration.

    The bins cover [0, limit) with a limit that is a power of two, and doubles when a value reaches
    it: pairs of bins are then added. So one pass is enough, and every count is exact.

    Attributes:
        maxima: Largest absolute value of every image, in order.
        histogram: int64 [BINS], counts of absolute values; zeros are in the first bin.
        limit: Upper end of the last bin; 0 as long as there are only zeros.
    """

    maxima: list[float] = field(default_factory=list)
    histogram: np.ndarray = field(default_factory=lambda: np.zeros(BINS, np.int64))
    limit: float = 0.0

    @property
    def width(self) -> float:
        """Width of a bin."""
        return self.limit / BINS

    @property
    def largest(self) -> float:
        """Largest absolute value; 0 without any."""
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

    def _widen(self, limit: float) -> None:
        """Raise the limit to one that is 2, 4, ... times as high; counts are added up in pairs."""
        if limit <= self.limit:
            return
        if self.limit:
            ratio = int(min(limit / self.limit, BINS))
            sums = self.histogram.reshape(-1, ratio).sum(axis=1)
            self.histogram = np.pad(sums, (0, BINS - sums.size))
        self.limit = limit

    def _count(self, flat: np.ndarray) -> None:
        if not self.limit:
            self.histogram[0] += flat.size
            return
        scale = np.float32(BINS / self.limit)
        # In pieces that fit into the processor's cache: three times as fast.
        for start in range(0, flat.size, _CHUNK):
            piece = flat[start : start + _CHUNK] * scale
            np.abs(piece, out=piece)
            self.histogram += np.bincount(piece.astype(np.intp), minlength=BINS)


def _limit_above(largest: float) -> float:
    """The smallest power of two above a value; 0 for 0."""
    if largest == 0:
        return 0.0
    return float(max(2.0 ** int(np.frexp(largest)[1]), SMALLEST_LIMIT))

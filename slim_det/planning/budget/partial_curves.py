"""The loss curve of a group of which only some points of the grid are measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from slim_det.compress.prune.ratios import units_removed

Losses = dict[str, dict[float, float]]
"""Group name -> ratio -> relative loss."""


@dataclass(frozen=True)
class PartialCurve:
    """Some measured points of a grid.

    A ratio that removes no unit, or as many as a measured one, needs no measurement.

    Attributes:
        units: Units of the group.
        grid: All ratios that may be measured, ascending.
        measured: Ratio of the grid -> relative loss.
    """

    units: int
    grid: tuple[float, ...]
    measured: Mapping[float, float]

    def estimated(self) -> dict[float, float]:
        """The loss at every ratio: linear between measured points, and on behind the last one.

        Behind the last point the line goes on as before it, but does not fall, up to a loss of 1.
        """
        counts, losses = self._known()
        slope = 0.0
        if len(counts) > 1:
            slope = max(0.0, (losses[-1] - losses[-2]) / (counts[-1] - counts[-2]))
        wanted = self._counts()
        behind = losses[-1] + slope * np.maximum(wanted - counts[-1], 0.0)
        values = np.where(wanted > counts[-1], behind, np.interp(wanted, counts, losses))
        return dict(zip(self.grid, np.minimum(values, 1.0).tolist()))

    def least(self) -> dict[float, float]:
        """The least possible loss at every ratio, if losses do not fall with the ratio.

        A point that is not measured loses at least what its measured neighbour before it does; if
        its neighbours contradict the assumption, the smaller of both.
        """
        counts, losses = self._known()
        before = np.searchsorted(counts, self._counts(), side="right") - 1
        after = np.minimum(np.searchsorted(counts, self._counts()), len(counts) - 1)
        return dict(zip(self.grid, np.minimum(losses[before], losses[after]).tolist()))

    def most(self) -> dict[float, float]:
        """The largest possible loss at every ratio, if losses do not fall with the ratio.

        At most that of the measured neighbour behind it, or 1; if its neighbours contradict the
        assumption, the larger of both.
        """
        counts, losses = self._known()
        before = np.searchsorted(counts, self._counts(), side="right") - 1
        after = np.searchsorted(counts, self._counts())
        return dict(
            zip(self.grid, np.maximum(losses[before], np.append(losses, 1.0)[after]).tolist())
        )

    def unmeasured_around(self, removed: int) -> list[float]:
        """Ratios to measure so that a number of units lies between measured points.

        These are the points next to it on both sides, and the point itself if it is one.
        """
        known, counts = set(self._known()[0].tolist()), self._counts().tolist()
        around = {count for count in counts if count == removed}
        around.update([max((c for c in counts if c < removed), default=removed)])
        around.update([min((c for c in counts if c > removed), default=removed)])
        firsts = {count: ratio for count, ratio in reversed(list(zip(counts, self.grid)))}
        return sorted(firsts[count] for count in around if count in firsts and count not in known)

    def unmeasured_middle(self) -> list[float]:
        """The ratio nearest to a half; none if anything is measured, or it removes no unit."""
        ratio = min(self.grid, key=lambda own: abs(own - 0.5))
        return [ratio] if not self.measured and units_removed(self.units, ratio) else []

    def _counts(self) -> np.ndarray:
        """Removed units at every ratio of the grid, int64 [grid]."""
        return np.array([units_removed(self.units, ratio) for ratio in self.grid], np.int64)

    def _known(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of units with a known loss, ascending from 0, and their losses."""
        known = {units_removed(self.units, r): self.measured[r] for r in sorted(self.measured)}
        points = sorted({**known, 0: 0.0}.items())
        return np.array([c for c, _ in points], np.int64), np.array([v for _, v in points])

"""What a layer reads and should give at sampled positions: a least-squares problem, and its error.

Behind an activation that clips, a target may be followed: where the former output is clipped, the
nearest output that is clipped too takes its place, once the layer has a solution. No such round
makes the error larger, with what the ridge adds to it, and two are enough: with 16, a detector was
no better than with none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from slim_det.compress.prune.reconstruct.branch import Limits
from slim_det.compress.prune.reconstruct.intercept import Place
from slim_det.compress.prune.reconstruct.least_squares import intercept, solve, squared_error
from slim_det.compress.prune.reconstruct.moments import Moments, MomentSums

ROUNDS = 2
"""How often targets behind an activation are replaced and the weights solved for again."""

_ROUNDING = 1e-12
"""Deviations of this share of the squares are rounding errors of their difference."""


@dataclass(frozen=True)
class _Part:
    """Inputs [G, P, D] and targets [G, P, M] that were added together, with their limits."""

    x: np.ndarray
    y: np.ndarray
    limits: Limits


@dataclass(frozen=True)
class Samples:
    """Inputs and targets of one layer over some images.

    Attributes:
        moments: Their sums.
        passed: Sums of the targets as the activation passes them; of its inputs nothing is read.
        parts: All of them, for a layer in front of an activation that clips; otherwise none.
    """

    moments: Moments
    passed: Moments
    parts: tuple[_Part, ...]

    def __add__(self, other: Samples) -> Samples:
        """The samples of both sets of images."""
        return Samples(
            self.moments + other.moments, self.passed + other.passed, self.parts + other.parts
        )

    def solved(
        self, start: np.ndarray, ridge: float, place: Place | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Weights [G, D, M] and what to add to their outputs, [G, M]: zero without a place."""
        weights, added = _solved(self.moments, start, ridge, place)
        for _ in range(ROUNDS if self.parts else 0):
            weights, added = _solved(self._followed(weights, added), start, ridge, place)
        return weights, added

    def error(self, weights: np.ndarray, added: np.ndarray | None = None) -> float:
        """Sum of squared differences; what is clipped as it should be has none."""
        if added is None:
            added = np.zeros((len(weights), weights.shape[2]))
        return squared_error(self._followed(weights, added), weights, added)

    def relative(self, error: float) -> float:
        """An error relative to the squared deviation of what the activation passes."""
        squares = float(self.passed.yy.sum())
        spread = self.passed.squared_deviation()
        if spread <= _ROUNDING * squares:
            spread = squares  # outputs that do not differ are compared with their size
        if spread > 0.0:
            return error / spread
        return float(error > _ROUNDING * float(self.moments.yy.sum()))

    def _followed(self, weights: np.ndarray, added: np.ndarray) -> Moments:
        """The sums with each target replaced by what counts alike and is nearest to the output."""
        if not self.parts:
            return self.moments
        sums = MomentSums(squares=False)
        single = weights.astype(np.float32), added[:, None].astype(np.float32)
        for part in self.parts:
            found = part.x @ single[0] + single[1]
            sums.add(part.x, part.limits.nearest(part.y, found))
        return replace(sums.total(), xx=self.moments.xx)


class SampleSums:
    """Collects `Samples` from one image after the other."""

    def __init__(self) -> None:
        self._sums, self._passed = MomentSums(), MomentSums()
        self._parts: list[_Part] = []
        self._clips: set[bool] = set()

    def add(self, x: np.ndarray, y: np.ndarray, limits: Limits | None) -> None:
        """Add inputs [G, P, D] and targets [G, P, M]; limits for all or for none."""
        self._clips.add(limits is not None)
        if len(self._clips) > 1:
            raise ValueError("some samples have limits and some have none")
        self._sums.add(x, y)
        if limits is not None:
            self._parts.append(_Part(x, y, limits))
            self._passed.add(x[..., :0], np.clip(y, limits.low, limits.high))

    def result(self) -> Samples | None:
        """The samples so far; None before anything was added."""
        moments = self._sums.result()
        if moments is None:
            return None
        return Samples(moments, self._passed.result() or moments, tuple(self._parts))


def _solved(
    moments: Moments, start: np.ndarray, ridge: float, place: Place | None
) -> tuple[np.ndarray, np.ndarray]:
    if place is None:
        solved = solve(moments, start, ridge)
        return solved, np.zeros((len(solved), solved.shape[2]))
    solved = solve(moments.centred(), start, ridge)
    return solved, intercept(moments, solved)

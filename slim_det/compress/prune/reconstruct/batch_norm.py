"""Gives batch norms the true statistics of their inputs without changing what they compute.

A repaired layer is another distribution for the batch norm behind it. In evaluation the running
statistics are only numbers of an affine map; in training a batch norm divides by the statistics of
its batch, and the model would be another function than the one that was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from slim_det.graph.op import Op
from slim_det.graph.staged_run import StagedRun


class BatchNormStatistics:
    """Measures the inputs of batch norms, while a model runs for another reason if possible.

    Args:
        norms: Indices of the batch norm operators.
    """

    def __init__(self, norms: Sequence[int]) -> None:
        self._norms = tuple(norms)
        self._measured: set[int] = set()
        self._totals: dict[str, _Total] = {}

    def due(self, run: StagedRun, names: Sequence[str]) -> list[Op]:
        """The batch norms, not measured yet, that the next stage runs for these variables.

        They count as measured; `add` has to be called for every image of the stage.
        """
        part = set(run.part(names))
        return self._of(run, [norm for norm in self._norms if norm in part])

    def add(self, ops: Sequence[Op], arrays: Mapping[str, np.ndarray]) -> None:
        """Add what some batch norms read on one image."""
        for op in ops:
            total = self._totals.setdefault(op.input("Scale"), _Total())
            total.add(_by_channel(op, arrays[op.input("X")]))

    def restate(self, run: StagedRun) -> None:
        """Measure what is left and rewrite the four vectors of every batch norm in the program.

        With mean m and deviation s as they are, and m' and s' as measured, scale and shift become
        ``gamma s' / s`` and ``beta + gamma (m' - m) / s``: the same map in evaluation, and in
        training the same up to the noise of a batch. Deviations are ``sqrt(variance + epsilon)``.

        Args:
            run: The model on the images.
        """
        left = self._of(run, self._norms)
        if left:
            for arrays in run.arrays([op.input("X") for op in left]):
                self.add(left, arrays)
        ops = [run.program.ops[norm] for norm in self._norms]
        for scale, op in {op.input("Scale"): op for op in ops}.items():
            _restate(run, op, *self._totals[scale].statistics())

    def _of(self, run: StagedRun, norms: Sequence[int]) -> list[Op]:
        found = [norm for norm in norms if norm not in self._measured]
        self._measured.update(found)
        return [run.program.ops[norm] for norm in found]


class _Total:
    """Count, mean and sum of squared deviations of every channel, image by image."""

    def __init__(self) -> None:
        self._count, self._mean, self._squares = 0, np.zeros(1), np.zeros(1)

    def add(self, values: np.ndarray) -> None:
        """Add values [P, C] (Chan, Golub, LeVeque 1983: no digits cancel)."""
        count = len(values)
        mean = values.mean(axis=0, dtype=np.float64)
        squares = np.square(values - mean).sum(axis=0)
        total = self._count + count
        gap = mean - self._mean
        self._squares = self._squares + squares + gap**2 * (self._count * count / total)
        self._mean = self._mean + gap * (count / total)
        self._count = total

    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and variance of every channel."""
        return self._mean, self._squares / self._count


def _by_channel(op: Op, values: np.ndarray) -> np.ndarray:
    """Values as [P, C]."""
    last = op.attrs.get("data_layout") == "NHWC" or values.ndim == 2
    return (values if last else np.moveaxis(values, 1, -1)).reshape(
        -1, values.shape[-1 if last else 1]
    )


def _restate(run: StagedRun, op: Op, mean: np.ndarray, variance: np.ndarray) -> None:
    program, epsilon = run.program, float(op.attrs["epsilon"])
    names = [op.input(slot) for slot in ("Scale", "Bias", "Mean", "Variance")]
    gamma, beta, old_mean, old_variance = (program.value(n).astype(np.float64) for n in names)
    deviation = np.sqrt(old_variance + epsilon)
    new = (
        gamma * np.sqrt(variance + epsilon) / deviation,
        beta + gamma * (mean - old_mean) / deviation,
        mean,
        variance,
    )
    for name, value in zip(names, new):
        program.set_value(name, value.astype(np.float32))

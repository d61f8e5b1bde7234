"""What lies behind a linear layer up to an activation: bias, batch norm, and what is clipped.

Behind a ReLU every negative number is the same. A layer need not give its former output there, only
any negative one, which leaves its weights to what passes (Zhang et al. 2015, arXiv 1505.06798,
solve for the outputs behind the ReLU for the same reason).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from slim_det.compress.prune.reconstruct.intercept import is_channel_bias, normalizes_channels
from slim_det.graph.folding import affine_map
from slim_det.graph.op import Op
from slim_det.graph.operators import result_of
from slim_det.graph.program import DeployProgram

_SMALLEST_FACTOR = 1e-3
"""Channels that batch norm multiplies by less, relative to the largest, hardly pass it."""

UNCLIPPED = (-math.inf, math.inf)
"""The interval of what clips nothing."""


@dataclass(frozen=True)
class Limits:
    """Outputs of a layer up to ``low`` count alike, and so do those from ``high`` on.

    Attributes:
        low: [1, C], or [P, C] where it differs between positions.
        high: Likewise.
    """

    low: np.ndarray
    high: np.ndarray

    def nearest(self, outputs: np.ndarray, found: np.ndarray) -> np.ndarray:
        """What counts like ``outputs`` and is nearest to ``found``; both are [..., P, C]."""
        as_low = np.where(outputs <= self.low, np.minimum(found, self.low), outputs)
        return np.where(outputs >= self.high, np.maximum(found, self.high), as_low)

    def grouped(self, groups: int) -> Limits:
        """For outputs [G, P, C / G] of the groups of a layer."""
        low, high = (
            one.reshape(len(one), groups, -1).transpose(1, 0, 2) for one in (self.low, self.high)
        )
        return Limits(low, high)


@dataclass(frozen=True)
class Branch:
    """A linear operator with all that alone reads the one before it, up to an activation.

    Attributes:
        use: Index of the operator.
        norm: Index of the batch norm; None without one.
        clip: Interval that the activation clips to; infinite without one.
        end: The variable that the last of them makes.
    """

    use: int
    norm: int | None
    clip: tuple[float, float]
    end: str

    @property
    def clips(self) -> bool:
        """Whether there is a limit."""
        return self.clip != UNCLIPPED

    def affine(self, program: DeployProgram) -> tuple[np.ndarray, np.ndarray]:
        """Factor and shift that bias and batch norm are for each output, float64 [C] or [1]."""
        name = program.bias_parameter(program.ops[self.use])
        bias = program.value(name).ravel().astype(np.float64) if name else np.zeros(1)
        if self.norm is None:
            return np.ones(1), bias
        factor, shift = affine_map(program, program.ops[self.norm])
        return factor, shift + factor * bias

    def limits(
        self, program: DeployProgram, channels: int, other: np.ndarray | float = 0.0
    ) -> Limits:
        """Limits of the outputs of the operator, before its bias.

        Args:
            program: Has the operators at the same indices.
            channels: Number of outputs, C.
            other: What is added before the interval counts, [P, C].
        """
        factor, shift = (np.broadcast_to(one, channels) for one in self.affine(program))
        weak = weak_channels(factor)
        scale = np.where(weak, 1.0, factor)
        ends = [(end - other - shift) / scale for end in self.clip]
        low, high = (np.where(factor > 0.0, *pair) for pair in (ends, ends[::-1]))
        return Limits(_rows(np.where(weak, -np.inf, low)), _rows(np.where(weak, np.inf, high)))


def branch_of(program: DeployProgram, use: int) -> Branch | None:
    """The branch of an operator; None with a bias that `is_channel_bias` refuses."""
    op = program.ops[use]
    addition, norm = program.bias_addition(op), None
    if addition is not None and not is_channel_bias(program, op, addition):
        return None
    name = program.with_bias(op)
    reader = program.only_reader(name)
    if reader is not None and normalizes_channels(program, op, reader):
        norm, name = program.ops.index(reader), result_of(reader)
        reader = program.only_reader(name)
    branch = Branch(use, norm, clip_of(reader), name)
    return replace(branch, end=result_of(reader)) if reader and branch.clips else branch


def _rows(values: np.ndarray) -> np.ndarray:
    return np.atleast_2d(values).astype(np.float32)


def clip_of(op: Op | None) -> tuple[float, float]:
    """The interval that an activation clips to; infinite for other operators."""
    if op is not None and op.type == "relu":
        return 0.0, math.inf
    if op is not None and op.type == "relu6":
        return 0.0, float(op.attrs.get("threshold", 6.0))
    return UNCLIPPED


def weak_channels(factor: np.ndarray) -> np.ndarray:
    """Which channels hardly pass a batch norm."""
    return np.abs(factor) <= _SMALLEST_FACTOR * np.abs(factor).max()

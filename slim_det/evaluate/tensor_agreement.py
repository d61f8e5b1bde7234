"""How far the tensors of two engines, or of two forms of a model, are apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TINY = 1e-30
"""Stands for the sum of squares of a tensor of zeros."""


@dataclass(frozen=True)
class TensorAgreement:
    """How far some tensors are from their references.

    Attributes:
        max_abs: Largest absolute difference.
        max_relative: Largest absolute difference of a tensor over the largest absolute value of
            its reference; of a reference of zeros the difference itself.
        cosine: Worst cosine of a tensor with its reference.
        fault: Why they cannot be compared; '' where they can. The differences are then infinite
            and the cosine is 0.
    """

    max_abs: float = 0.0
    max_relative: float = 0.0
    cosine: float = 1.0
    fault: str = ""


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    """Cosine of the angle between two tensors of one shape; of two that are zero it is 1."""
    if np.array_equal(left, right):
        return 1.0
    a, b = left.astype(np.float64).ravel(), right.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return min(1.0, float(a @ b / norms)) if norms else 0.0


def compare_tensors(
    found: Sequence[np.ndarray], reference: Sequence[np.ndarray]
) -> TensorAgreement:
    """Compare tensors in pairs.

    A number of tensors or a shape that differs is a fault, and so is a value that is not finite.
    """
    shapes = [[list(tensor.shape) for tensor in side] for side in (found, reference)]
    if shapes[0] != shapes[1]:
        return _incomparable(f"shapes are {shapes[0]}, expected {shapes[1]}")
    for side, whose in ((found, ""), (reference, " of the reference")):
        if not all(np.isfinite(tensor).all() for tensor in side):
            return _incomparable(f"values{whose} are not finite")
    return worst_of([_compare(a, b) for a, b in zip(found, reference)])


def worst_of(parts: Sequence[TensorAgreement]) -> TensorAgreement:
    """Several comparisons as one; the first fault is named."""
    return TensorAgreement(
        max((part.max_abs for part in parts), default=0.0),
        max((part.max_relative for part in parts), default=0.0),
        min((part.cosine for part in parts), default=1.0),
        next((part.fault for part in parts if part.fault), ""),
    )


@dataclass
class ErrorEnergy:
    """Signal and noise of tensors against their references, added up.

    Attributes:
        signal: Sum of the squares of the references.
        noise: Sum of the squares of the differences.
    """

    signal: float = 0.0
    noise: float = 0.0

    def add(self, found: np.ndarray, reference: np.ndarray) -> None:
        """Add a tensor and its reference of the same shape."""
        exact = reference.astype(np.float64)
        self.signal += float(np.square(exact).sum())
        self.noise += float(np.square(found - exact).sum())

    @property
    def relative(self) -> float:
        """Noise over signal; 0 only where there is no noise."""
        return self.noise / max(self.signal, TINY)


def _compare(found: np.ndarray, reference: np.ndarray) -> TensorAgreement:
    difference = _largest(found.astype(np.float64) - reference)
    relative = difference / (_largest(reference) or 1.0)
    return TensorAgreement(difference, relative, cosine(found, reference))


def _largest(tensor: np.ndarray) -> float:
    return float(np.abs(tensor).max(initial=0.0))


def _incomparable(fault: str) -> TensorAgreement:
    return TensorAgreement(np.inf, np.inf, 0.0, fault)

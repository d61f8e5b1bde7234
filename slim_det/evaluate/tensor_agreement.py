"""How much tensors differ between two engines or two forms of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TINY = 1e-30
"""Used in place of the sum of squares of an all-zero tensor."""


@dataclass(frozen=True)
class TensorAgreement:
    """How much tensors differ from their references.

    Attributes:
        max_abs: Largest absolute difference.
        max_relative: Largest ratio, over the tensors, of the largest absolute difference to the
            largest absolute value of the reference (for an all-zero reference, the difference).
        cosine: Lowest cosine similarity between a tensor and its reference.
        fault: Why they cannot be compared, '' if they can. With a fault the differences are
            infinite and the cosine is 0.
    """

    max_abs: float = 0.0
    max_relative: float = 0.0
    cosine: float = 1.0
    fault: str = ""


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    """Cosine similarity of two tensors of the same shape; 1 if they are equal, even if zero."""
    if np.array_equal(left, right):
        return 1.0
    a, b = left.astype(np.float64).ravel(), right.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return min(1.0, float(a @ b / norms)) if norms else 0.0


def compare_tensors(
    found: Sequence[np.ndarray], reference: Sequence[np.ndarray]
) -> TensorAgreement:
    """Compare tensors pairwise.

    A different number of tensors, a different shape or a value that is not finite is a fault.
    """
    shapes = [[list(tensor.shape) for tensor in side] for side in (found, reference)]
    if shapes[0] != shapes[1]:
        return _incomparable(f"shapes are {shapes[0]}, expected {shapes[1]}")
    for side, whose in ((found, ""), (reference, " of the reference")):
        if not all(np.isfinite(tensor).all() for tensor in side):
            return _incomparable(f"values{whose} are not finite")
    return worst_of([_compare(a, b) for a, b in zip(found, reference)])


def worst_of(parts: Sequence[TensorAgreement]) -> TensorAgreement:
    """Combine several comparisons into the worst case, with the first fault."""
    return TensorAgreement(
        max((part.max_abs for part in parts), default=0.0),
        max((part.max_relative for part in parts), default=0.0),
        min((part.cosine for part in parts), default=1.0),
        next((part.fault for part in parts if part.fault), ""),
    )


@dataclass
class ErrorEnergy:
    """Accumulated signal and noise energy of tensors relative to their references.

    Attributes:
        signal: Sum of squares of the references.
        noise: Sum of squares of the differences.
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
        """Noise divided by signal; 0 only if there is no noise."""
        return self.noise / max(self.signal, TINY)


def _compare(found: np.ndarray, reference: np.ndarray) -> TensorAgreement:
    difference = _largest(found.astype(np.float64) - reference)
    relative = difference / (_largest(reference) or 1.0)
    return TensorAgreement(difference, relative, cosine(found, reference))


def _largest(tensor: np.ndarray) -> float:
    return float(np.abs(tensor).max(initial=0.0))


def _incomparable(fault: str) -> TensorAgreement:
    return TensorAgreement(np.inf, np.inf, 0.0, fault)

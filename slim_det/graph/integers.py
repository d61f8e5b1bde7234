"""Integers that stand for floats: the one definition here, and what an engine has to know of them.

A range ``r`` and ``b`` bits mean the integers -L to L with L = 2^(b-1) - 1, an integer q standing
for the value q * r / L. Values beyond the range are clipped. Zero is exactly zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LayerScales:
    """Everything that an engine needs to know of one quantized convolution.

    Attributes:
        input_range: The integer of an input x is x / input_range * 127, rounded and clipped.
        weight_ranges: Of the weight with its batch norm folded, float64 [Cout] or [1].
        weight_bits: Of an integer weight.
        activation_bits: Of an integer input.
    """

    input_range: float
    weight_ranges: np.ndarray
    weight_bits: int
    activation_bits: int


def levels(bits: int) -> int:
    """The largest integer of a signed, symmetric type: 127 for 8 bits."""
    return int(2 ** (bits - 1) - 1)


def to_integers(values: np.ndarray, ranges: np.ndarray, bits: int) -> np.ndarray:
    """Round to integers.

    Args:
        values: float array; the first axis is that of the channels.
        ranges: float [C] or [1].
        bits: Of an integer.

    Returns:
        float64 array of whole numbers, of the shape of ``values``.
    """
    limit = levels(bits)
    spread = np.asarray(ranges, np.float64).reshape(-1, *[1] * (values.ndim - 1))
    return np.clip(np.rint(values.astype(np.float64) / spread * limit), -limit, limit)

"""The one definition of quantized integers, and the ranges that an engine needs.

A range ``r`` and ``b`` bits mean the integers -L to L with L = 2^(b-1) - 1, where an integer q
means the value q * r / L. Values beyond the range are clipped. Zero is exactly zero.

Behind a ReLU an engine stores an 8-bit input as 0 to 255. The program does not say so; the engine
sees the ReLU. The simulation rounds such an input with one bit more (`QuantSettings.input_bits`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class LayerRanges:
    """The ranges and bits of one quantized convolution.

    Attributes:
        input_range: The integer of an input x is x / input_range * 127, rounded and clipped; with
            255 instead of 127 behind a ReLU.
        weight_ranges: Of the weight with its batch norm folded, float64 [Cout] or [1].
        weight_bits: Bits of an integer weight.
        activation_bits: Bits of an integer input.
    """

    input_range: float
    weight_ranges: np.ndarray
    weight_bits: int
    activation_bits: int

    @property
    def is_usable(self) -> bool:
        """Whether every range is finite and positive."""
        values = np.append(self.weight_ranges, self.input_range)
        return bool(np.isfinite(values).all() and (values > 0).all())


def levels(bits: int) -> int:
    """The largest integer of a signed, symmetric type: 127 for 8 bits."""
    return int(2 ** (bits - 1) - 1)


def to_integers(values: np.ndarray, ranges: np.ndarray, bits: int) -> np.ndarray:
    """Round to integers.

    Args:
        values: float array; channels on the first axis.
        ranges: float [C] or [1].
        bits: Bits of an integer.

    Returns:
        The integers as a float64 array with the shape of ``values``.
    """
    limit = levels(bits)
    spread = np.asarray(ranges, np.float64).reshape(-1, *[1] * (values.ndim - 1))
    return np.clip(np.rint(values.astype(np.float64) / spread * limit), -limit, limit)

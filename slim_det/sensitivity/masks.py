"""Masks: inputs of a program that force channels to zero where a layer reads them."""

from __future__ import annotations

import numpy as np


def mask_name(reader: str) -> str:
    """Name of the mask of a weight's input channels."""
    return f"{reader}.mask"


def mask_value(keep: np.ndarray, weight_ndim: int, repeats: int) -> np.ndarray:
    """The mask of one reader.

    Args:
        keep: bool [C], which entries of the weight's input axis remain.
        weight_ndim: Axes of the weight; 4 for a convolution.
        repeats: Groups of the convolution: each reads as many channels.
    """
    mask = np.tile(keep.astype(np.float32), repeats)
    return mask.reshape(1, -1, 1, 1) if weight_ndim == 4 else mask

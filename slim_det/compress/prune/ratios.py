"""Ratios: how many channels of a layer are removed."""

from __future__ import annotations

import numpy as np

SHARE_OF = ("channels", "energy")
"""What a ratio can be a share of."""


def units_removed(units: int, ratio: float, align: int = 1) -> int:
    """How many of ``units`` channels a ratio removes.

    Args:
        units: Number of channels.
        ratio: Share to remove, between 0 and 1.
        align: The remaining number is rounded to a multiple of this, and is at least this.

    Returns:
        ``int(round(units * ratio))``, at most ``units - 1``; with ``align`` the number that
        leaves the nearest multiple (0 if the layer is narrower than ``align``).
    """
    return _aligned(units, int(round(units * ratio)), align)


def units_within_energy(scores: np.ndarray, ratio: float, align: int = 1) -> int:
    """How many units a ratio removes that is a share of the energy.

    The energy of a unit is the square of its score. The optimal thresholding of Ye et al. 2020
    (arXiv 2003.04566) removes the smallest scores, as long as their energy is at most this share
    of that of all.

    Args:
        scores: One number per unit, [U].
        ratio: Share of the energy to remove, between 0 and 1.
        align: See `units_removed`.

    Returns:
        At most ``U - 1``.
    """
    energy = np.cumsum(np.sort(np.square(scores)))
    within = int(np.count_nonzero(energy <= ratio * energy[-1]))
    return _aligned(len(scores), within, align)


def _aligned(units: int, removed: int, align: int) -> int:
    """The number to remove so that what remains is a multiple, and at least one channel."""
    kept = max(1, units - removed)
    if align > 1:
        kept = min(units, max(align, align * int(kept / align + 0.5)))
    return units - kept

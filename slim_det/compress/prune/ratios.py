"""Ratios: how many channels of a layer are removed."""

from __future__ import annotations


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
    kept = max(1, units - int(round(units * ratio)))
    if align > 1:
        kept = min(units, max(align, align * int(kept / align + 0.5)))
    return units - kept

"""Ratios: how many channels of which layer are removed. Functions of names and numbers only."""

from __future__ import annotations


def units_removed(units: int, ratio: float, align: int = 1) -> int:
    """How many of ``units`` channels a ratio removes.

    Args:
        units: Channels that there are.
        ratio: Share to remove, between 0 and 1.
        align: What remains is rounded to a multiple of this, at least one multiple.

    Returns:
        ``int(round(units * ratio))``, at most ``units - 1``; with ``align`` the number that
        leaves the nearest multiple (0 where the layer is narrower than one multiple).
    """
    kept = max(1, units - int(round(units * ratio)))
    if align > 1:
        kept = min(units, max(align, align * int(kept / align + 0.5)))
    return units - kept

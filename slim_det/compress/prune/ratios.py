"""Ratios: how many channels of a layer are removed, at once or in steps."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

SHARE_OF = ("channels", "energy")
"""What a ratio can be a share of."""

BISECTIONS = 20
"""Halvings of the interval from 0 to 1 in which a progress is searched: to one in a million."""


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


def ratio_at(ratio: float, progress: float) -> float:
    """Share of the original channels that is removed on the way to a ratio.

    The share that is kept falls geometrically, so equal steps of the progress remove equal shares
    of the channels that are left: with half of all channels to remove, three steps keep 79, 63 and
    50 %. It is the rule of PaddleSlim's `SensitivePruneStrategy` (``num_steps``).

    Args:
        ratio: Share to remove in the end, between 0 and 1.
        progress: Part of the way, from 0 to 1.

    Returns:
        ``1 - (1 - ratio) ** progress``, and exactly ``ratio`` at the end.
    """
    return ratio if progress == 1 else 1 - (1 - ratio) ** progress


def even_progress(steps: int) -> list[float]:
    """Progress after each of a number of equal steps."""
    return [step / steps for step in range(1, steps)] + [1.0]


def progress_by_macs(
    macs_at: Callable[[float], float], original_macs: float, share: float
) -> list[float]:
    """Progress after each of as many steps as are needed if each removes a share of the MACs.

    Args:
        macs_at: Progress -> MACs of the model; they do not grow with the progress.
        original_macs: MACs before the first step.
        share: Share of the original MACs that a step removes, between 0 and 1.

    Returns:
        For each step the smallest progress that removes its MACs. The last step ends at 1 and may
        remove less. A step is left out if the one before it removes enough for both.
    """
    final_macs = macs_at(1.0)
    found: list[float] = []
    reached = original_macs
    for step in range(1, int(1 / share) + 1):
        allowed = original_macs * (1 - share * step)
        if allowed >= reached:
            continue
        progress = _smallest_progress(macs_at, allowed)
        reached = macs_at(progress)
        if reached <= final_macs:
            break
        found.append(progress)
    return [*found, 1.0]


def _smallest_progress(macs_at: Callable[[float], float], macs: float) -> float:
    """The smallest progress at which the MACs are at most ``macs``, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if macs_at(middle) <= macs else (middle, high)
    return high

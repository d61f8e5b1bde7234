"""Options: how many units of a group may be removed, and the ratio that removes them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from slim_det.compress.prune.groups import Group
from slim_det.compress.prune.ratios import units_removed

MAX_STEP = 0.05
MAX_OPTIONS = 19
RATIO_DIGITS = 4


@dataclass(frozen=True)
class Limits:
    """Limits of the options of every group.

    Attributes:
        align: The remaining units of a group are a multiple of this.
        max_ratio: Largest share of its units that may be removed.
        min_channels: Fewest channels that may remain.
    """

    align: int = 1
    max_ratio: float = 0.9
    min_channels: int = 1


def allowed_removals(group: Group, losses: Mapping[float, float], limits: Limits) -> list[int]:
    """Numbers of units that may be removed, ascending; 0 comes first.

    Nothing beyond the largest measured ratio is allowed, because its loss is not known.
    """
    units = len(group.units)
    most = units_removed(units, min(limits.max_ratio, max(losses, default=0.0)))
    return [0] + [
        removed
        for removed in range(1, most + 1)
        if (units - removed) % limits.align == 0
        and group.channels_kept(removed) >= limits.min_channels
    ]


def coarse_options(allowed: list[int], units: int, ratios: Iterable[float]) -> list[int]:
    """The measured numbers of units and others between them, at most 5 % of the units apart.

    Args:
        allowed: What may be removed, ascending from 0.
        units: Units of the group.
        ratios: The measured ratios.

    Returns:
        Some of ``allowed``, each the nearest to one of these numbers, ascending from 0.
    """
    points = sorted({0, *(units_removed(units, ratio) for ratio in ratios)})
    wanted = {points[-1]}
    for low, high in zip(points, points[1:]):
        steps = max(1, int(np.ceil((high - low) / units / MAX_STEP - 1e-6)))
        wanted.update(np.linspace(low, high, steps + 1).round().astype(int).tolist())
    nearest = (min(allowed, key=lambda own: (abs(own - number), own)) for number in wanted)
    return sorted({0, *nearest})


def fine_options(allowed: list[int], coarse: list[int], chosen: int) -> list[int]:
    """Options around a chosen one, from the coarse option before it to the one after it.

    Args:
        allowed: What may be removed, ascending from 0.
        coarse: The options that it was chosen from.
        chosen: One of ``coarse``.

    Returns:
        At most `MAX_OPTIONS` + 1 of ``allowed``, ascending; ``chosen`` is among them.
    """
    place = coarse.index(chosen)
    low, high = coarse[max(place - 1, 0)], coarse[min(place + 1, len(coarse) - 1)]
    between = [number for number in allowed if low <= number <= high]
    picks = np.linspace(0, len(between) - 1, min(len(between), MAX_OPTIONS)).round().astype(int)
    return sorted({chosen, *(between[pick] for pick in picks.tolist())})


def largest_within(allowed: list[int], removed: int) -> int:
    """The largest allowed number of units that is not above ``removed``."""
    return max(number for number in allowed if number <= removed)


def ratio_for(units: int, removed: int, align: int, wanted: Iterable[float] = ()) -> float:
    """A ratio that makes the pruner remove exactly this many units.

    Args:
        units: Units of the group.
        removed: How many to remove, between 1 and ``units - 1``.
        align: Alignment that the pruner is given.
        wanted: Preferred ratios, such as the measured ones.

    Returns:
        The first of ``wanted`` that does it, else the one with the fewest decimals.
    """
    exact = removed / units
    shorter = [round(exact, digits) for digits in range(1, RATIO_DIGITS + 8)]
    for ratio in (*wanted, *shorter):
        if 0.0 < ratio < 1.0 and units_removed(units, ratio, align) == removed:
            return ratio
    return exact

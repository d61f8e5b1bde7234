"""Curves: the loss of a group at any share of its channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from slim_det.compress.prune.ratios import units_removed

MIN_RETAINED = 1e-6
"""A group that loses everything counts as keeping this share of the metric."""


def ratio_at_loss(losses: Mapping[float, float], threshold: float) -> float:
    """The largest ratio whose loss stays within a threshold.

    The rule of PaddleSlim's ``get_ratios_by_loss``: the largest measured ratio whose loss is within
    the threshold, and from there a straight line towards the next larger ratio, up to the
    threshold. Here the curve starts at ratio 0 with loss 0, so that a group whose smallest ratio
    loses too much is cut a little instead of not at all.

    Args:
        losses: Ratio -> relative loss, as measured.
        threshold: Largest relative loss, at least 0.
    """
    points = sorted({**losses, 0.0: 0.0}.items())
    at = max(i for i, (_, loss) in enumerate(points) if loss <= threshold)
    if at == len(points) - 1:
        return points[at][0]
    (ratio, loss), (next_ratio, next_loss) = points[at : at + 2]
    return ratio + (threshold - loss) * (next_ratio - ratio) / (next_loss - loss)


def losses_at(losses: Mapping[float, float], units: int, removed: Iterable[int]) -> np.ndarray:
    """Relative loss at numbers of removed units, linear between measurements.

    Args:
        losses: Ratio -> relative loss, as measured.
        units: Units of the group.
        removed: Numbers of units, none beyond the largest measured one.

    Returns:
        float64 [removed]. A measured number of units has exactly its measured loss; 0 loses 0.
    """
    measured = {units_removed(units, ratio): losses[ratio] for ratio in sorted(losses)}
    points = sorted({**measured, 0: 0.0}.items())
    units_cut, measured_losses = np.array(points, np.float64).T
    return np.interp(np.array(list(removed), np.float64), units_cut, measured_losses)


def penalties_of(losses: np.ndarray) -> np.ndarray:
    """Losses as numbers that add up over groups: ``-log(1 - loss)``, at most -log(1e-6).

    Their sum is ``-log`` of the share of the metric that is predicted to be left, if the losses of
    the groups are independent. A gain (negative loss) is kept.
    """
    return -np.log(np.maximum(1.0 - losses, MIN_RETAINED))


def retained(penalty: float) -> float:
    """The share of the metric that a sum of penalties leaves."""
    return float(np.exp(-penalty))

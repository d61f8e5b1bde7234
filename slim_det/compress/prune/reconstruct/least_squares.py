"""Least squares: the weights of a layer that reproduce given outputs from changed inputs."""

from __future__ import annotations

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from slim_det.compress.prune.reconstruct.in_place import with_ridge
from slim_det.compress.prune.reconstruct.moments import Moments


def solve(moments: Moments, weights: np.ndarray, ridge: float) -> np.ndarray:
    """Minimise ``|y - W^T x|^2 + ridge * tr(x x^T) / D * |W - weights|^2`` for each group.

    Channel pruning by He, Zhang, Sun 2017 (arXiv 1707.06168), in closed form, drawn to the weights
    that the layer has.

    Args:
        moments: Sums over positions; centred ones leave the intercept free (see `intercept`).
        weights: float64 [G, D, M].
        ridge: Relative to the mean of the squared inputs.

    Returns:
        float64 [G, D, M]; a group whose inputs are all zero keeps its weights.
    """
    solved = np.array(weights, np.float64)
    for group, xx in enumerate(moments.xx):
        penalty = ridge * np.trace(xx) / len(xx)
        if penalty <= 0.0:
            continue
        solved[group] += _correction(xx, penalty, moments.xy[group] - xx @ weights[group])
    return solved


def without(xx: np.ndarray, weights: np.ndarray, gone: np.ndarray, ridge: float) -> np.ndarray:
    """Weights of the inputs that are left, so that outputs change least when others are gone.

    Args:
        xx: Sum of x x^T, [D, D].
        weights: The weights of all inputs, float64 [D, M].
        gone: Which inputs are gone, bool [D].
        ridge: Relative to the mean of the squared inputs that are left; it draws to ``weights``.

    Returns:
        float64 [D, M]; zero where inputs are gone.
    """
    solved = np.where(gone[:, None], 0.0, weights)
    left, lost = np.flatnonzero(~gone), np.flatnonzero(gone)
    squares = xx[np.ix_(left, left)]
    penalty = ridge * np.trace(squares) / max(len(left), 1)
    if len(lost) and penalty > 0.0:
        gap = xx[np.ix_(left, lost)] @ weights[lost]
        solved[left] += _correction(squares, penalty, gap)
    return solved


def _correction(xx: np.ndarray, penalty: float, gap: np.ndarray) -> np.ndarray:
    """The solution of ``(xx + penalty) x = gap``."""
    try:
        # Transposed, it has BLAS' order of memory and is factored in place.
        factor = cho_factor(with_ridge(xx, penalty).T, overwrite_a=True, check_finite=False)
        return np.asarray(cho_solve(factor, gap))
    except LinAlgError:  # a ridge below rounding errors
        return np.linalg.lstsq(with_ridge(xx, penalty), gap, rcond=None)[0]


def intercept(moments: Moments, weights: np.ndarray) -> np.ndarray:
    """What to add to the outputs of these weights so that their means are right, [G, M]."""
    through = np.einsum("gd,gdm->gm", moments.x, weights)
    return (moments.y - through) / max(moments.count, 1)


def squared_error(moments: Moments, weights: np.ndarray, added: np.ndarray | float = 0.0) -> float:
    """Sum of squared differences between targets and outputs.

    Args:
        moments: Sums over positions, not centred.
        weights: float64 [G, D, M].
        added: What is added to the outputs, [G, M].
    """
    explained = np.einsum("gdm,gdm->gm", weights, moments.xx @ weights)
    error = moments.yy - 2 * np.einsum("gdm,gdm->gm", weights, moments.xy) + explained
    shift = np.broadcast_to(np.asarray(added, np.float64), error.shape)
    through = np.einsum("gd,gdm->gm", moments.x, weights)
    error = error - 2 * shift * (moments.y - through) + moments.count * np.square(shift)
    return float(np.maximum(error, 0.0).sum())

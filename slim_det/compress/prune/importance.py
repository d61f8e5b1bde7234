"""Importance: a score per channel; the channels with the lowest scores are removed.

Each criterion takes the weight of a layer as float64 [C, K], one row per output channel, and the
scale of the batch norm after it, float64 [C].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import paddle

from slim_det.compress.prune.groups import Group
from slim_det.compress.prune.ratios import units_removed, units_within_energy
from slim_det.core.errors import ConfigError, LayerError, nearest
from slim_det.graph.channels import Producer

UnitScores = Callable[[Group, int], np.ndarray]
"""(group, number of units to remove) -> one score per unit; the lowest are removed."""

Criterion = Callable[[np.ndarray, "np.ndarray | None", np.random.Generator], np.ndarray]


def l1_norm(filters: np.ndarray, scale: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Sum of absolute weights (Li et al. 2016, arXiv 1608.08710), float64 [C]."""
    return np.abs(filters).sum(axis=1)


def l2_norm(filters: np.ndarray, scale: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Euclidean norm of the weights, float64 [C]."""
    return np.sqrt(np.square(filters).sum(axis=1))


def fpgm(filters: np.ndarray, scale: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Sum of distances to all filters (He et al. 2019, arXiv 1811.00250), float64 [C].

    Filters near the geometric median are the ones that the others can replace.
    """
    products = filters @ filters.T
    squared = np.diagonal(products)
    distances = squared[:, None] + squared[None, :] - 2.0 * products
    return np.sqrt(np.maximum(distances, 0.0)).sum(axis=1)


def bn_scale(filters: np.ndarray, scale: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Absolute batch norm scale (Liu et al. 2017, arXiv 1708.06519), float64 [C].

    Raises:
        ValueError: No batch norm follows the layer (``scale`` is None).
    """
    if scale is None:
        raise ValueError("bn_scale needs a batch norm directly behind the layer")
    return np.abs(scale)


def random(filters: np.ndarray, scale: np.ndarray | None, rng: np.random.Generator) -> np.ndarray:
    """Uniform noise, the baseline of every other criterion, float64 [C]."""
    return rng.random(len(filters))


CRITERIA: dict[str, Criterion] = {
    "l1_norm": l1_norm,
    "l2_norm": l2_norm,
    "fpgm": fpgm,
    "bn_scale": bn_scale,
    "random": random,
}


def smallest(scores: np.ndarray, count: int, layers: np.ndarray | None = None) -> np.ndarray:
    """Indices of the smallest scores, ascending; of equal ones the lower index is taken first.

    Args:
        scores: One number per channel, [C].
        count: How many to choose.
        layers: Channels of each layer, bool [L, C]; by default one layer has them all. Each keeps
            at least one, so fewer than ``count`` may be chosen.
    """
    left = np.ones((1, len(scores)), bool) if layers is None else layers.copy()
    chosen: list[int] = []
    for index in np.argsort(scores, kind="stable").tolist():
        last = left[:, index] & (left.sum(axis=1) == 1)
        if len(chosen) < count and not last.any():
            left[:, index] = False
            chosen.append(index)
    return np.sort(np.array(chosen, dtype=np.int64))


def check_criterion(name: Any, where: str, more: Iterable[str] = ()) -> None:
    """Make sure that a criterion exists.

    Args:
        name: Its name.
        where: Beginning of the message.
        more: Names that are accepted besides those of `CRITERIA`.

    Raises:
        ConfigError: It does not.
    """
    known = (*CRITERIA, *more)
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"{where} {name!r}{nearest(str(name), known)}")


def unit_scores(
    criterion: str,
    group: Group,
    parameters: dict[str, paddle.Tensor],
    rng: np.random.Generator,
) -> np.ndarray:
    """One score per unit, by the first member that produces it.

    Args:
        criterion: A name.
        group: The group to score.
        parameters: State-dict name -> parameter of the model.
        rng: For the criterion `random`.

    Returns:
        float64 [U]; the least important units have the lowest scores.

    Raises:
        ConfigError: The criterion needs images.
        LayerError: The criterion does not fit a layer, or weights or scores are not finite.
    """
    if criterion not in CRITERIA:
        raise ConfigError(
            f"criterion '{criterion}' needs images, which are not read here; expected "
            f"one of {', '.join(CRITERIA)}"
        )
    scores = np.full(len(group.units), np.nan)
    for member in group.members:
        places = group.places_of(member.ids)
        channel_scores = _channel_scores(criterion, member, parameters, rng)
        total = np.bincount(places, channel_scores, minlength=len(scores))
        new = places[np.isnan(scores[places])]
        scores[new] = total[new]
        if not np.isnan(scores).any():
            break
    return scores


def least_important(
    group: Group, scores: np.ndarray, ratio: float, align: int = 1, energy: bool = False
) -> np.ndarray:
    """Places of the units to remove, ascending; every member keeps at least one of its units.

    Args:
        group: The group to prune.
        scores: One score per unit, [U].
        ratio: Share to remove.
        align: See `units_removed`.
        energy: Whether it is a share of the energy (see `units_within_energy`), not of the units.
    """
    members = group.holders
    if not energy:
        return smallest(scores, units_removed(len(group.units), ratio, align), members)
    count = units_within_energy(scores, ratio, align)
    # A unit that a member has to keep is not replaced by one with more energy.
    return np.intersect1d(smallest(scores, count, members), smallest(scores, count))


def _channel_scores(
    criterion: str,
    member: Producer,
    parameters: dict[str, paddle.Tensor],
    rng: np.random.Generator,
) -> np.ndarray:
    weight = _finite(member.parameter, parameters)
    filters = np.moveaxis(weight, member.axis, 0).reshape(len(member.ids), -1)
    scale = _finite(member.batch_norm, parameters) if member.batch_norm else None
    try:
        scores = np.asarray(CRITERIA[criterion](filters, scale, rng), np.float64)
    except ValueError as error:
        raise LayerError(f"'{member.parameter}': {error}; choose another criterion") from error
    if scores.shape != (len(filters),) or not np.isfinite(scores).all():
        raise LayerError(
            f"'{member.parameter}': criterion '{criterion}' returned an array of "
            f"shape {scores.shape}; expected {len(filters)} finite numbers, one per channel"
        )
    return scores


def _finite(name: str, parameters: dict[str, paddle.Tensor]) -> np.ndarray:
    value = parameters[name].numpy().astype(np.float64)
    if not np.isfinite(value).all():
        raise LayerError(f"'{name}' holds weights that are not finite")
    return value

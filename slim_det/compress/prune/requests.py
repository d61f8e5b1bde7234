"""Requests: which layers a user wants cut and by how much, in every way of writing it."""

from __future__ import annotations

import logging
from typing import Any

from slim_det.compress.prune.groups import ModelGroups
from slim_det.core.errors import ConfigError, LayerError, nearest
from slim_det.detectors.layer_finder import LayerFinder
from slim_det.detectors.yolov3_head import PRESETS, YOLO_HEAD_LAYERS

logger = logging.getLogger("slim_det")


def read_requests(pruned_params: Any, pruned_ratios: Any) -> list[tuple[str, float]]:
    """Settle every way of writing names and ratios into pairs.

    Returns:
        (spelling, ratio) pairs; a spelling may still be a glob or `all`.

    Raises:
        ConfigError: A ratio is out of range, lengths differ, or a preset is unknown.
    """
    if pruned_ratios is None:
        raise ConfigError(
            "Pruner.pruned_ratios is missing; expected a number, a list, a mapping or a preset "
            f"({', '.join(PRESETS)})"
        )
    if isinstance(pruned_ratios, str) and not _is_number(pruned_ratios):
        if pruned_ratios not in PRESETS:
            raise ConfigError(
                f"Pruner.pruned_ratios: unknown preset '{pruned_ratios}'"
                f"{nearest(pruned_ratios, PRESETS)}"
            )
        if pruned_params not in (None, "yolo_head"):
            raise ConfigError(
                f"Pruner.pruned_params: preset '{pruned_ratios}' names its own layers; "
                "leave pruned_params out or write 'yolo_head'"
            )
        return list(PRESETS[pruned_ratios].items())
    if isinstance(pruned_ratios, dict):
        if pruned_params is not None:
            raise ConfigError(
                "Pruner.pruned_params: pruned_ratios is a mapping that names its own layers; "
                "leave pruned_params out"
            )
        if not pruned_ratios:
            raise ConfigError("Pruner.pruned_ratios is empty; expected layer names with ratios")
        return [(str(name), _ratio(value, str(name))) for name, value in pruned_ratios.items()]
    if pruned_params is None:
        pruned_params = ["all"]
    elif isinstance(pruned_params, str):
        pruned_params = list(YOLO_HEAD_LAYERS) if pruned_params == "yolo_head" else [pruned_params]
    if not isinstance(pruned_params, (list, tuple)) or not pruned_params:
        raise ConfigError(
            f"Pruner.pruned_params: {pruned_params!r} is not valid; expected a list of layers"
        )
    if isinstance(pruned_ratios, (list, tuple)):
        if len(pruned_ratios) != len(pruned_params):
            raise ConfigError(
                f"Pruner: {len(pruned_params)} pruned_params but {len(pruned_ratios)} "
                "pruned_ratios; expected one ratio a layer, or a single number for all"
            )
        return [(str(n), _ratio(r, str(n))) for n, r in zip(pruned_params, pruned_ratios)]
    ratio = _ratio(pruned_ratios, "all layers")
    return [(str(name), ratio) for name in pruned_params]


def select_groups(
    requests: list[tuple[str, float]], finder: LayerFinder, groups: ModelGroups
) -> dict[str, float]:
    """Turn requests into one ratio a group, in execution order.

    Raises:
        LayerError: A layer is unknown, cannot be cut, or is given two ratios.
    """
    chosen: dict[str, float] = {}
    asked_by: dict[str, str] = {}
    for spelling, ratio in requests:
        for name in _groups_named(spelling, finder, groups):
            if chosen.get(name, ratio) != ratio:
                raise LayerError(
                    f"'{spelling}' ({ratio:g}) and '{asked_by[name]}' ({chosen[name]:g}) "
                    f"are cut together as group '{name}'; give them one ratio"
                )
            chosen[name] = ratio
            asked_by[name] = spelling
    return {name: chosen[name] for name in groups.groups if name in chosen}


def _ratio(value: Any, name: str) -> float:
    number = float(value) if _is_number(value) else float("nan")
    if not 0.0 < number < 1.0:
        raise ConfigError(
            f"Pruner.pruned_ratios: ratio {value!r} for '{name}' is not valid; expected a "
            "number between 0 and 1, both excluded"
        )
    return number


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _groups_named(spelling: str, finder: LayerFinder, groups: ModelGroups) -> list[str]:
    """Groups that a spelling selects; globs pass over what cannot be cut, and say so."""
    if spelling == "all":
        found = list(groups.groups)
    else:
        found = []
        for weight in finder.find(spelling):
            found += _groups_of_weight(weight, groups)
        if not any(sign in spelling for sign in "*?["):
            if not found:
                raise LayerError(f"'{spelling}' cannot be cut: no group of channels follows it")
            if len(found) > 1:
                raise LayerError(
                    f"'{spelling}' follows {len(found)} groups; name one: {', '.join(found)}"
                )
            group = groups.groups[found[0]]
            if not group.prunable:
                choices = [g.name for g in groups.groups.values() if g.prunable]
                raise LayerError(
                    f"'{spelling}' cannot be cut: {group.reason}{nearest(group.name, choices)}"
                )
            return found
    prunable = [name for name in dict.fromkeys(found) if groups.groups[name].prunable]
    left = len(dict.fromkeys(found)) - len(prunable)
    if not prunable:
        raise LayerError(f"nothing to prune: no layer that '{spelling}' names can be cut")
    if left:
        logger.info("'%s': %d groups cannot be cut and stay whole", spelling, left)
    return prunable


def _groups_of_weight(weight: str, groups: ModelGroups) -> list[str]:
    if weight in groups.member_of:
        return [groups.member_of[weight]]
    return groups.followers.get(weight, [])

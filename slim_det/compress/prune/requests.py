"""Requests: which layers a user wants to prune and by how much, in every notation."""

from __future__ import annotations

import logging
from typing import Any

from slim_det.compress.prune.groups import ModelGroups
from slim_det.core.errors import ConfigError, LayerError, nearest
from slim_det.detectors.layer_finder import LayerFinder
from slim_det.detectors.yolov3_head import PRESETS, YOLO_HEAD_LAYERS

logger = logging.getLogger("slim_det")


def read_requests(pruned_params: Any, pruned_ratios: Any) -> list[tuple[str, float]]:
    """Read names and ratios in any of their notations (see `Pruner`).

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
    if isinstance(pruned_ratios, str) and as_number(pruned_ratios) is None:
        return _preset(pruned_params, pruned_ratios)
    if isinstance(pruned_ratios, dict):
        if pruned_params is not None:
            raise ConfigError(
                "Pruner.pruned_params: pruned_ratios is a mapping that names its own layers; "
                "leave pruned_params out"
            )
        if not pruned_ratios:
            raise ConfigError("Pruner.pruned_ratios is empty; expected layer names with ratios")
        return [(str(name), _ratio(value, str(name))) for name, value in pruned_ratios.items()]
    names = read_layers(pruned_params, "Pruner.pruned_params")
    if not isinstance(pruned_ratios, (list, tuple)):
        ratio = _ratio(pruned_ratios, "all layers")
        return [(name, ratio) for name in names]
    if len(pruned_ratios) != len(names):
        raise ConfigError(
            f"Pruner: {len(names)} pruned_params but {len(pruned_ratios)} pruned_ratios; expected "
            "one ratio per layer, or a single number for all"
        )
    return [(name, _ratio(ratio, name)) for name, ratio in zip(names, pruned_ratios)]


def select_groups(
    requests: list[tuple[str, float]],
    finder: LayerFinder,
    groups: ModelGroups,
    first_counts: bool = False,
) -> dict[str, float]:
    """Turn requests into one ratio per group, in execution order.

    Args:
        requests: Names with ratios.
        finder: Finds the layers of a name.
        groups: The groups of the model.
        first_counts: Whether a group that is named with two ratios gets the first, as in
            PaddleSlim, whose lists name every layer. A line says so.

    Raises:
        LayerError: A layer is unknown, cannot be pruned, or has two ratios.
    """
    chosen: dict[str, float] = {}
    asked_by: dict[str, str] = {}
    for spelling, ratio in requests:
        for name in groups_named(spelling, finder, groups):
            if chosen.get(name, ratio) != ratio:
                both = (
                    f"'{spelling}' ({ratio:g}) and '{asked_by[name]}' ({chosen[name]:g}) "
                    f"are cut together as group '{name}'"
                )
                if not first_counts:
                    raise LayerError(f"{both}; give them one ratio")
                logger.warning("%s; %g, which comes first, is used", both, chosen[name])
                continue
            chosen[name] = ratio
            asked_by[name] = spelling
    return {name: chosen[name] for name in groups.groups if name in chosen}


def _preset(pruned_params: Any, preset: str) -> list[tuple[str, float]]:
    if preset not in PRESETS:
        raise ConfigError(
            f"Pruner.pruned_ratios: unknown preset '{preset}'{nearest(preset, PRESETS)}"
        )
    if pruned_params not in (None, "yolo_head"):
        raise ConfigError(
            f"Pruner.pruned_params: preset '{preset}' names its own layers; "
            "leave pruned_params out or write 'yolo_head'"
        )
    return list(PRESETS[preset].items())


def read_layers(value: Any, key: str) -> list[str]:
    """Read names of layers: one, a list, `yolo_head`, or None for all.

    Args:
        value: What the slim file says.
        key: Its key, for messages.

    Returns:
        Spellings; one may still be a glob or `all`.

    Raises:
        ConfigError: It is anything else.
    """
    if value is None:
        return ["all"]
    if value == "yolo_head":
        return list(YOLO_HEAD_LAYERS)
    if isinstance(value, str):
        return [value]
    if not isinstance(value, (list, tuple)) or not value:
        raise ConfigError(f"{key}: {value!r} is not valid; expected a list of layers")
    return [str(name) for name in value]


def _ratio(value: Any, name: str) -> float:
    number = as_number(value)
    if number is None or not 0.0 < number < 1.0:
        raise ConfigError(
            f"Pruner.pruned_ratios: ratio {value!r} for '{name}' is not valid; expected a "
            "number between 0 and 1, both excluded"
        )
    return number


def as_number(value: Any) -> float | None:
    """A number, which may be written as text; None for anything else."""
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def groups_named(spelling: str, finder: LayerFinder, groups: ModelGroups) -> list[str]:
    """Groups that a spelling selects; a glob and `all` leave out those that cannot be pruned.

    Raises:
        LayerError: No layer has this name, or none that can be pruned.
    """
    weights = groups.member_of if spelling == "all" else finder.find(spelling)
    found = list(dict.fromkeys(g for weight in weights for g in _groups_of_weight(weight, groups)))
    if spelling != "all" and not any(sign in spelling for sign in "*?["):
        _check_single(spelling, found, groups)
        return found
    prunable = [name for name in found if groups.groups[name].prunable]
    if not prunable:
        raise LayerError(f"nothing to prune: no layer that '{spelling}' names can be cut")
    left = len(found) - len(prunable)
    if left:
        logger.info("'%s': %d groups cannot be cut and stay unpruned", spelling, left)
    return prunable


def _check_single(spelling: str, found: list[str], groups: ModelGroups) -> None:
    """Make sure that the name of one layer selects one group that can be pruned."""
    if not found:
        raise LayerError(f"'{spelling}' cannot be cut: no group of channels follows it")
    if len(found) > 1:
        raise LayerError(f"'{spelling}' follows {len(found)} groups; name one: {', '.join(found)}")
    group = groups.groups[found[0]]
    if not group.prunable:
        choices = [g.name for g in groups.groups.values() if g.prunable]
        raise LayerError(
            f"'{spelling}' cannot be cut: {group.reason}{nearest(group.name, choices)}"
        )


def _groups_of_weight(weight: str, groups: ModelGroups) -> list[str]:
    if weight in groups.member_of:
        return [groups.member_of[weight]]
    return groups.followers.get(weight, [])

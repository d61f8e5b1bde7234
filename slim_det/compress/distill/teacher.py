"""The teacher: built from a configuration of its own, with its own weights, and frozen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import paddle

from slim_det.core.errors import ConfigError, SlimDetError, nearest

_EXPECTED = "expected teacher: {config: FILE.yml, weights: FILE.pdparams}"


@dataclass(frozen=True)
class Teacher:
    """A detector to learn from.

    Attributes:
        model: In evaluation mode, every parameter with ``stop_gradient``.
        cfg: Its configuration, in plain dicts with the defaults of every component.
    """

    model: paddle.nn.Layer
    cfg: dict[str, Any]


def build_teacher(spec: Mapping[str, Any], load_detector: Callable[..., Any]) -> Teacher:
    """Build a teacher and freeze it.

    Args:
        spec: ``{config: FILE, weights: FILE}``, or ``{tree: MAPPING, weights: FILE}`` where a
            slim file holds the configuration itself. Weights may be an address, and those of a
            pruned or quantized detector.
        load_detector: See `slim_det.compress.strategy.Context`.

    Raises:
        ConfigError: The settings or the teacher's configuration are not valid.
        PlanError: The plan beside its weights belongs to another model.
        WeightsError: The weights are missing, damaged, or not exactly those of the model.
    """
    source, weights = _read_spec(spec)
    try:
        model, cfg = load_detector(source, weights)
    except SlimDetError as error:
        raise type(error)(f"Distill.teacher: {error}") from error
    model.eval()
    for parameter in model.parameters():
        parameter.stop_gradient = True
    return Teacher(model, cfg)


def _read_spec(spec: Any) -> tuple[str | Mapping[str, Any], str]:
    """The configuration, as a path or as a tree, and the weights."""
    if not isinstance(spec, Mapping):
        raise ConfigError(f"Distill.teacher: {spec!r} is not valid; {_EXPECTED}")
    for key in spec:
        if key not in ("config", "weights", "tree"):
            choices = ("config", "weights")
            raise ConfigError(f"Distill.teacher: unknown key '{key}'{nearest(str(key), choices)}")
    source, weights = spec.get("config") or spec.get("tree"), spec.get("weights")
    if not source:
        raise ConfigError(f"Distill.teacher.config is missing; {_EXPECTED}")
    if not weights:
        raise ConfigError(
            "Distill.teacher.weights is missing; expected the .pdparams file of a trained teacher"
        )
    for key in ("config", "weights"):
        value = spec.get(key)
        if value and not isinstance(value, str):
            raise ConfigError(f"Distill.teacher.{key}: expected the path of a file, got {value!r}")
    return source, weights

"""The teacher: built from a configuration of its own, with its own weights, and frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import paddle

from slim_det.core.errors import ConfigError, SlimDetError, nearest
from slim_det.training import checkpoint
from slim_det.training.config_scope import fresh_config, plain_copy

_EXPECTED = "expected teacher: {config: FILE.yml, weights: FILE.pdparams}"


@dataclass(frozen=True)
class Teacher:
    """A detector to learn from.

    Attributes:
        model: In evaluation mode, every parameter with ``stop_gradient``.
        cfg: Its own configuration, in plain dicts with the defaults of every component.
        weights: Where its weights came from.
    """

    model: paddle.nn.Layer
    cfg: dict[str, Any]
    weights: str


def build_teacher(spec: Mapping[str, Any]) -> Teacher:
    """Build a teacher; ppdet's configuration and the random numbers stay as they are.

    Args:
        spec: ``{config: FILE, weights: FILE}``, or ``{tree: MAPPING, weights: FILE}`` where a
            slim file holds the configuration itself. Weights may be an address. A plan beside
            them is replayed, so a pruned detector can teach.

    Raises:
        ConfigError: The settings or the teacher's configuration are not valid.
        PlanError: The plan beside its weights belongs to another model.
        WeightsError: The weights are missing, damaged, or not exactly those of the model.
    """
    source, weights = _read_spec(spec)
    # ppdet's initialisers draw numbers: with a teacher or without, a seed trains the same student.
    random_state = paddle.get_rng_state()
    try:
        with fresh_config():
            return _build(source, weights)
    except SlimDetError as error:
        raise type(error)(f"Distill.teacher: {error}") from error
    finally:
        paddle.set_rng_state(random_state)


def _read_spec(spec: Any) -> tuple[str | Mapping[str, Any], str]:
    """The configuration, as a path or as a tree, and the weights."""
    if not isinstance(spec, Mapping):
        raise ConfigError(f"Distill.teacher: {spec!r} is not valid; {_EXPECTED}")
    for key in spec:
        if key not in ("config", "weights", "tree"):
            choices = ("config", "weights")
            raise ConfigError(f"Distill.teacher: unknown key '{key}'{nearest(str(key), choices)}")
    config, weights = spec.get("config"), spec.get("weights")
    source = config or spec.get("tree")
    if not source:
        raise ConfigError(f"Distill.teacher.config is missing; {_EXPECTED}")
    if not weights:
        raise ConfigError(
            "Distill.teacher.weights is missing; expected the .pdparams file of a trained teacher"
        )
    for key, value in (("config", config), ("weights", weights)):
        if value and not isinstance(value, str):
            raise ConfigError(f"Distill.teacher.{key}: expected the path of a file, got {value!r}")
    return source, weights


def _build(source: str | Mapping[str, Any], weights: str) -> Teacher:
    # Not above: a program may import these first, and they import ppdet, which leads here.
    from slim_det.training.config import load_config, load_tree
    from slim_det.training.session import build_model

    cfg = load_config(source) if isinstance(source, str) else load_tree(source, "_BASE_")
    settings = plain_copy(cfg)
    model = build_model(cfg)
    checkpoint.load_weights(model, weights)
    model.eval()
    for parameter in model.parameters():
        parameter.stop_gradient = True
    return Teacher(model, settings, weights)

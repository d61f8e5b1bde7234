"""From a configuration to a model that is ready to train, evaluate or export.

Always in this order: build the model, repeat the steps beside the weights, load the weights, apply
the strategies of a slim file. All of it happens before a Trainer exists.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import paddle
from ppdet.core.workspace import create, global_config

from slim_det.compress.steps import step_of
from slim_det.compress.strategy import Context, Purpose, Strategy, postpone, registered_strategies
from slim_det.core.errors import ConfigError, SlimDetError, one_line
from slim_det.core.safe_yaml import merge
from slim_det.detectors.build import build_detector
from slim_det.detectors.image_size import image_size_hw
from slim_det.training import checkpoint
from slim_det.training.config import SlimConfig, load_config, load_slim_config, load_tree
from slim_det.training.config_scope import fresh_config, plain_copy


def set_device(cfg: Any) -> None:
    """Select the configured device.

    Raises:
        ConfigError: It is a GPU, which this Paddle does not support.
    """
    if cfg.get("use_gpu") and not paddle.is_compiled_with_cuda():
        raise ConfigError(
            "use_gpu is true but the installed paddlepaddle has no GPU support; "
            "add -o use_gpu=false"
        )
    paddle.set_device("gpu" if cfg.get("use_gpu") else "cpu")


def read_slim(path: str) -> SlimConfig:
    """Read a slim file and merge it into ppdet's configuration (see `load_slim_config`)."""
    slim = load_slim_config(path)
    merge(global_config, slim.settings)
    return slim


def build_model(cfg: Any) -> paddle.nn.Layer:
    """Build the detector of a configuration, with parameter names as in a fresh process.

    Raises:
        ConfigError: A component is unknown or rejects its settings.
    """
    try:
        model = build_detector(cfg)
    except SlimDetError:
        raise
    except Exception as error:  # components check little, so a wrong value may end anywhere
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise ConfigError(f"the model cannot be built: {reason}") from error
    model.eval()
    return model


def load_detector(
    source: str | Mapping[str, Any], weights: str
) -> tuple[paddle.nn.Layer, dict[str, Any]]:
    """Build another detector, with its own configuration and weights.

    ppdet's configuration and random state are left as they were, so a seed trains the same student
    with or without a teacher.

    Args:
        source: Its configuration: a file, or a mapping.
        weights: Checkpoint, with or without suffix, or an address.

    Returns:
        The model, and its configuration in plain dicts with the defaults of every component.

    Raises:
        ConfigError: The configuration is not valid.
        WeightsError: The weights are missing, damaged, or not exactly those of the model.
    """
    random_state = paddle.get_rng_state()
    try:
        with fresh_config():
            cfg = load_config(source) if isinstance(source, str) else load_tree(source, "_BASE_")
            settings = plain_copy(cfg)
            model = build_model(cfg)
            checkpoint.load_weights(model, weights)
    finally:
        paddle.set_rng_state(random_state)
    return model, settings


def model_for_training(
    cfg: Any, slim: SlimConfig | None = None, resume: str | None = None
) -> paddle.nn.Layer:
    """Build a model with the weights that training starts from, and apply a slim file.

    Args:
        cfg: ppdet's configuration.
        slim: The slim file, if any.
        resume: Checkpoint to resume from, if any; its steps are repeated.

    Raises:
        ConfigError: ``slim`` names a strategy that does not train.
        SlimDetError: ``slim`` contradicts the steps of the weights.
    """
    if resume:
        load = functools.partial(checkpoint.load_weights, weights=resume)
        return _prepared_model(cfg, slim, "resume", resume, load)
    start = cfg.get("pretrain_weights")
    load = functools.partial(checkpoint.load_pretrained, weights=start)
    return _prepared_model(cfg, slim, "train", str(start), load if start else lambda model: None)


def model_with_weights(
    cfg: Any, weights: str | None, slim: SlimConfig | None = None, calibrating: bool = False
) -> paddle.nn.Layer:
    """Build a model with trained weights, for evaluation, inference or export.

    The steps beside the weights say how the model was changed. A slim file is needed only to
    change it now, such as to measure the loss from pruning alone.

    Args:
        cfg: ppdet's configuration.
        weights: Checkpoint, with or without suffix.
        slim: The slim file, if any; strategies that the weights have had are only checked.
        calibrating: Whether a calibration that ``slim`` names will follow (see `postponed`).

    Raises:
        ConfigError: No weights are given.
        SlimDetError: ``slim`` contradicts the steps of the weights.
    """
    if not weights:
        raise ConfigError("no weights are given; add -o weights=PATH")
    load = functools.partial(checkpoint.load_weights, weights=weights)
    return _prepared_model(cfg, slim, "calibrate" if calibrating else "use", weights, load)


def apply_strategies(model: paddle.nn.Layer, cfg: Any, slim: SlimConfig) -> paddle.nn.Layer:
    """Apply a slim file, which was merged into ``cfg``, to a model that has no steps yet.

    Strategies that train or calibrate are left out.
    """
    return _apply(model, slim.strategies, _context(cfg, slim, "use", "the weights"))


def prune_weights(model: paddle.nn.Layer, cfg: Any, slim: SlimConfig) -> paddle.nn.Layer:
    """Prune a model that was loaded from ``cfg.weights``, once more if the pruner's `again` is set.

    Args:
        model: The model with its steps.
        cfg: ppdet's configuration, with the slim file merged into it.
        slim: The slim file, with the pruner as its only strategy.

    Raises:
        SlimDetError: The weights cannot be pruned, or not again.
    """
    return _changed(model, slim, _context(cfg, slim, "prune", str(cfg.weights)))


def _context(cfg: Any, slim: SlimConfig, purpose: Purpose, weights: str) -> Context:
    return Context(
        cfg,
        image_size_hw(cfg),
        purpose,
        weights,
        slim.path,
        build_detector=lambda: build_model(cfg),
        load_detector=load_detector,
    )


def _prepared_model(
    cfg: Any,
    slim: SlimConfig | None,
    purpose: Purpose,
    weights: str,
    load: Callable[[paddle.nn.Layer], None],
) -> paddle.nn.Layer:
    """Build a model, load its weights, and apply the strategies that they have not had."""
    model = build_model(cfg)
    if slim is None:
        load(model)
        return model
    context = _context(cfg, slim, purpose, weights)
    for kind in _kinds(slim).values():
        kind.check_purpose(context)
    load(model)
    return _changed(model, slim, context)


def _kinds(slim: SlimConfig) -> dict[str, type[Strategy]]:
    registered = registered_strategies()
    return {name: registered[name] for name in slim.strategies}


def _changed(model: paddle.nn.Layer, slim: SlimConfig, context: Context) -> paddle.nn.Layer:
    """Apply the strategies that a model has not had, and let the others adopt what was done."""
    kinds = _kinds(slim)
    found = {name: kind.step and step_of(model, kind.step) for name, kind in kinds.items()}
    for name, kind in kinds.items():
        if found[name] is None:
            kind.check_weights(model, context)
    for name, step in found.items():
        if step is not None:
            create(name).adopt(model, step, context)
    return _apply(model, [name for name, step in found.items() if step is None], context)


def _apply(model: paddle.nn.Layer, names: Iterable[str], context: Context) -> paddle.nn.Layer:
    """Apply strategies in order; those that wait are noted for the calibration, if one follows."""
    registered = registered_strategies()
    for name in names:
        kind = registered[name]
        if kind.waits:
            if context.purpose == "calibrate":
                postpone(model, create(name))
        elif context.is_training or not kind.only_in_training:
            model = create(name)(model, context)
    return model

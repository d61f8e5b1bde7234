"""From a configuration to a model that is ready to train, evaluate or export.

The one way of a weight: build the model, replay the plan beside the weights, load the weights,
cut what a slim file asks for. Everything here happens before a Trainer exists.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import paddle
from ppdet.core.workspace import create, global_config

from slim_det.compress.prune.groups import find_groups
from slim_det.compress.prune.plan import plan_of
from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.prune.requests import select_groups
from slim_det.compress.quantize.record import QuantRecord, attach_record, record_of
from slim_det.compress.quantize.strategy import QAT, settings_that_differ
from slim_det.core.errors import ConfigError, PlanError, QuantError, SlimDetError
from slim_det.core.safe_yaml import merge
from slim_det.detectors.image_size import image_size_hw
from slim_det.detectors.layer_finder import LayerFinder
from slim_det.graph.trace import trace_detector
from slim_det.training import checkpoint
from slim_det.training.config import SlimConfig, load_slim_config

logger = logging.getLogger("slim_det")

STRATEGIES = ["Pruner", "Distill", "DistillPrune", "QAT", "PrunerQAT", "PTQ"]

# The others change the training only.
_WITHOUT_TRAINING = ("Pruner", "PTQ")


def set_device(cfg: Any) -> None:
    """Select the device that the configuration asks for.

    Raises:
        ConfigError: It asks for a GPU and this Paddle has none.
    """
    if cfg.get("use_gpu") and not paddle.is_compiled_with_cuda():
        raise ConfigError(
            "use_gpu is true but the installed paddlepaddle has no GPU support; "
            "add -o use_gpu=false"
        )
    paddle.set_device("gpu" if cfg.get("use_gpu") else "cpu")


def read_slim(path: str) -> SlimConfig:
    """Read a slim file and merge its settings into ppdet's configuration.

    Raises:
        ConfigError: The file is not valid (see `slim_det.training.config.load_slim_config`).
    """
    slim = load_slim_config(path, STRATEGIES)
    merge(global_config, slim.settings)
    return slim


def build_model(cfg: Any) -> paddle.nn.Layer:
    """Build the detector of a configuration, its parameters named as in a fresh process.

    Raises:
        ConfigError: A component is unknown or refuses its settings.
    """
    try:
        with paddle.utils.unique_name.guard():
            model = create(cfg["architecture"])
    except SlimDetError:
        raise
    except (ValueError, TypeError, LookupError, AssertionError, AttributeError) as error:
        raise ConfigError(f"the model cannot be built: {type(error).__name__}: {error}") from error
    model.eval()
    return model


def apply_strategies(
    model: paddle.nn.Layer, cfg: Any, slim: SlimConfig, training: bool = False
) -> paddle.nn.Layer:
    """Apply the strategies of a slim file in order, each ``__call__(model) -> model``.

    Args:
        model: With its weights; still whole.
        cfg: ppdet's configuration.
        slim: The slim file, merged into it.
        training: Whether the model will be trained. If not, no teacher is built and nothing
            is quantized: that is in the weights, or done by a calibration.
    """
    for name in slim.strategies:
        if training or name in _WITHOUT_TRAINING:
            model = create(name)(model, image_size_hw(cfg))
    return model


def model_for_training(
    cfg: Any, slim: SlimConfig | None = None, resume: str | None = None
) -> paddle.nn.Layer:
    """Build a model with the weights that training starts from, changed as a slim file asks.

    Args:
        cfg: ppdet's configuration.
        slim: What to do to it, if anything.
        resume: Checkpoint that training will be resumed from; its plan wins.

    Raises:
        ConfigError: ``slim`` names PTQ, which does not train.
        PlanError: ``slim`` asks for another cut than the weights have been given.
        QuantError: ``slim`` asks for another quantization than the weights have been given, or
            float weights are to be resumed with QAT.
    """
    model = build_model(cfg)
    if slim is not None and "PTQ" in slim.strategies:
        raise ConfigError(
            f"{slim.path}: slim: 'PTQ' does not train; expected 'QAT', or `slim-det quantize "
            f"--slim_config {slim.path}`"
        )
    start = resume or cfg.get("pretrain_weights")
    if resume:
        checkpoint.load_weights(model, resume)
    elif start:
        checkpoint.load_pretrained(model, start)
    if resume and slim is not None and "QAT" in slim.strategies and record_of(model) is None:
        raise QuantError(
            f"'{resume}' is of a float training and {slim.path} asks for QAT, so it cannot be gone "
            f"on with; expected -o pretrain_weights={resume} instead of -r"
        )
    return _changed_as_asked(model, cfg, slim, str(start), training=True)


def model_with_weights(
    cfg: Any, weights: str | None, slim: SlimConfig | None = None, calibrating: bool = False
) -> paddle.nn.Layer:
    """Build a model with trained weights, for evaluation, inference or export.

    The plan and the record beside the weights say how the model was cut and quantized. A slim
    file is needed only for whole weights that are to be cut now, to see what the cut alone costs.

    Args:
        cfg: ppdet's configuration.
        weights: Checkpoint, with or without suffix.
        slim: What the weights are expected to be, or how they are to be cut.
        calibrating: Whether float weights are wanted where ``slim`` names PTQ.

    Raises:
        ConfigError: No weights are given.
        PlanError: ``slim`` asks for another cut than the weights have been given.
        QuantError: ``slim`` asks for a quantization that the weights do not have.
    """
    if not weights:
        raise ConfigError("no weights are given; add -o weights=PATH")
    model = build_model(cfg)
    checkpoint.load_weights(model, weights)
    if slim is not None and record_of(model) is None:
        _check_float_weights(slim, weights, calibrating)
    return _changed_as_asked(model, cfg, slim, weights, training=False)


def make_pruner() -> Pruner:
    """The pruner that the configuration describes."""
    return create("Pruner")


def _changed_as_asked(
    model: paddle.nn.Layer, cfg: Any, slim: SlimConfig | None, weights: str, training: bool
) -> paddle.nn.Layer:
    """Apply a slim file; what the weights are cut and quantized like must agree with it."""
    if slim is None:
        return model
    plan, record = plan_of(model), record_of(model)
    done = set()
    if plan is not None and "Pruner" in slim.strategies:
        _check_agrees(cfg, plan.settings, slim, weights)
        done.add("Pruner")
    if record is not None:
        if "Pruner" in slim.strategies and plan is None:
            raise QuantError(
                f"'{weights}' are quantized and {slim.path} asks for a cut; cut float weights, "
                "then quantize them"
            )
        if "QAT" in slim.strategies:
            _check_quantized_alike(model, record, slim, weights)
        done |= {"QAT", "PTQ"}
    left = tuple(name for name in slim.strategies if name not in done)
    return apply_strategies(model, cfg, replace(slim, strategies=left), training)


def _check_float_weights(slim: SlimConfig, weights: str, calibrating: bool) -> None:
    """Refuse to evaluate, run or export float weights as if they were quantized."""
    if "QAT" in slim.strategies:
        raise QuantError(
            f"'{weights}' are float weights and {slim.path} asks for QAT; expected weights that "
            f"`slim-det train --slim_config {slim.path}` has left, or `slim-det quantize`"
        )
    if "PTQ" in slim.strategies and not calibrating:
        raise QuantError(
            f"'{weights}' are float weights and {slim.path} asks for PTQ; expected `slim-det "
            f"quantize --slim_config {slim.path}`, and then the weights that it leaves"
        )


def _check_quantized_alike(
    model: paddle.nn.Layer, record: QuantRecord, slim: SlimConfig, weights: str
) -> None:
    """Refuse a slim file that contradicts the record; take over when it freezes what."""
    asked: QAT = create("QAT")
    differing = settings_that_differ(record.settings, asked.settings)
    if differing:
        raise QuantError(
            f"'{weights}' are quantized otherwise than {slim.path} asks for: {differing[0]}; leave "
            "--slim_config out, or start from float weights"
        )
    origin = {**record.origin, "method": "aware", **asked.schedule}
    attach_record(model, replace(record, origin=origin))
    logger.info("'%s' are already quantized as %s asks; their ranges are used", weights, slim.path)


def _check_agrees(cfg: Any, settings: dict[str, Any], slim: SlimConfig, weights: str) -> None:
    """Refuse a slim file that contradicts the plan beside the weights."""
    pruner = make_pruner()
    same = pruner.criterion == settings["criterion"] and pruner.align == settings["align"]
    if not same or _ratios(pruner, cfg) != settings["ratios"]:
        raise PlanError(
            f"'{weights}' was already cut, with {settings['criterion']}, in another way than "
            f"{slim.path} asks for; leave --slim_config out, or start from whole weights"
        )
    logger.info("'%s' is already cut as %s asks; its plan is used", weights, slim.path)


def _ratios(pruner: Pruner, cfg: Any) -> dict[str, float]:
    """The ratio of each group that a pruner would cut in a model that is still whole."""
    whole = build_model(cfg)
    groups = find_groups(whole, trace_detector(whole, image_size_hw(cfg)))
    return select_groups(pruner.requests, LayerFinder(whole), groups)

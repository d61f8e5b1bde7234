"""Replaces parts of ppdet once it is imported."""

from __future__ import annotations

import functools
from typing import Any

import ppdet.data.transform as ppdet_transform
import ppdet.engine.trainer as ppdet_trainer
import ppdet.slim as ppdet_slim
from ppdet.core.workspace import global_config, register

from slim_det.compress.distill.strategy import Distill
from slim_det.compress.hook import Hook
from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.prune.slimming import Slim
from slim_det.compress.quantize.strategy import PTQ, QAT
from slim_det.compress.strategy import hooks_of
from slim_det.compress.tensors import stored_constants
from slim_det.core.errors import DataError
from slim_det.core.script_overrides import script_overrides
from slim_det.detectors.blazeface.backbone import BlazeFaceNet
from slim_det.detectors.blazeface.face_crop import CropWithDataAchorSampling
from slim_det.detectors.blazeface.head import FaceHead
from slim_det.detectors.blazeface.loss import SSDLoss
from slim_det.detectors.paddle_changes import follow_paddle
from slim_det.detectors.pillow_changes import follow_pillow
from slim_det.detectors.single_images import follow_one_image
from slim_det.detectors.yolov3.plain_backbone import PlainBackbone
from slim_det.detectors.yolov3.scaled_fpn import ScaledYOLOv3FPN
from slim_det.evaluate.data.replacements import read_as_checked
from slim_det.evaluate.readers import report_errors
from slim_det.training import checkpoint, session
from slim_det.training.checkpoint_saver import CheckpointSaver
from slim_det.training.config import apply_overrides
from slim_det.training.finite_training import FiniteTraining

COMPONENTS = (
    Pruner, Slim, Distill, QAT, PTQ,
    PlainBackbone, BlazeFaceNet, FaceHead, SSDLoss, ScaledYOLOv3FPN,
)  # fmt: skip

_init_callbacks_of_ppdet = ppdet_trainer.Trainer._init_callbacks
_init_metrics_of_ppdet = ppdet_trainer.Trainer._init_metrics
_train_of_ppdet = ppdet_trainer.Trainer.train
_resume_weights_of_ppdet = ppdet_trainer.Trainer.resume_weights


def register_components() -> None:
    """Register our classes with ppdet, and replace what does not work there or loses data."""
    for component in COMPONENTS:
        global_config.pop(component.__name__, None)
        register(component)
    ppdet_slim.build_slim_model = build_slim_model
    ppdet_transform.CropWithDataAchorSampling = CropWithDataAchorSampling
    follow_paddle()
    follow_one_image()
    follow_pillow()
    read_as_checked()
    report_errors()
    ppdet_trainer.Checkpointer = CheckpointSaver
    ppdet_trainer.load_weight = checkpoint.resume
    ppdet_trainer.Trainer.load_weights = _load_weights
    ppdet_trainer.Trainer.resume_weights = _resume_weights
    ppdet_trainer.Trainer._init_callbacks = _init_callbacks
    ppdet_trainer.Trainer._init_metrics = _init_metrics
    ppdet_trainer.Trainer.train = _train
    # ppdet's callback ends the process; here faces are evaluated in the loop like other data.
    ppdet_trainer.WiferFaceEval = Hook


def build_slim_model(cfg: Any, slim_config: str, mode: str = "train") -> Any:
    """Replaces ppdet's function of this name: puts the compressed model into ``cfg``.

    Args:
        cfg: ppdet's configuration.
        slim_config: Path of a slim file.
        mode: ``train``, or ``eval`` / ``test``, which load ``cfg.weights`` too. A calibration may
            follow only in ``test``, the mode of PaddleDetection's ``tools/post_quant.py``.

    Returns:
        ``cfg``, with the model under ``model``.
    """
    slim = session.read_slim(slim_config)
    apply_overrides(script_overrides)
    model = (
        session.model_for_training(cfg, slim)
        if mode == "train"
        else session.model_with_weights(cfg, cfg.weights, slim, calibrating=mode == "test")
    )
    cfg["model"] = model
    return cfg


def _load_weights(trainer: Any, weights: str) -> None:
    """`Trainer.load_weights`: what fits for a training, every tensor otherwise."""
    if trainer.is_loaded_weights:
        return
    trainer.start_epoch = 0
    load = checkpoint.load_pretrained if trainer.mode == "train" else checkpoint.load_weights
    load(trainer.model, weights)


def _init_callbacks(trainer: Any) -> None:
    """`Trainer._init_callbacks`: ppdet's, and the hooks of the strategies."""
    _init_callbacks_of_ppdet(trainer)
    if trainer.mode == "train":
        _keep_constants(trainer)
        _add_hooks(trainer)


def _keep_constants(trainer: Any) -> None:
    """Leave constants out of ppdet's moving average, whose first steps would change them."""
    if trainer.use_ema:
        constants = stored_constants(trainer.model)
        trainer.ema.ema_black_list = {*trainer.ema.ema_black_list, *constants}
        trainer.ema.state_dict.update(constants)


def _resume_weights(trainer: Any, weights: str) -> None:
    """`Trainer.resume_weights`: ppdet's, and the hooks of steps that came with the weights."""
    _resume_weights_of_ppdet(trainer, weights)
    _add_hooks(trainer)


def _add_hooks(trainer: Any) -> None:
    """Register our hooks and those of the strategies whose steps the model has, once."""
    present = {type(callback) for callback in trainer._callbacks}
    hooks: list[type[Hook]] = [FiniteTraining, *hooks_of(trainer.model)]
    ours = [hook(trainer) for hook in hooks if hook not in present]
    if ours:
        # Ours come first, so that a model with values that are not finite is not saved.
        callbacks = [*ours, *trainer._callbacks]
        trainer._callbacks = []
        trainer.register_callbacks(callbacks)


@functools.wraps(_train_of_ppdet)
def _train(trainer: Any, *arguments: Any, **named: Any) -> Any:
    """`Trainer.train`: ppdet's; errors of NaN in the weights and of missing annotations say so."""
    try:
        return _train_of_ppdet(trainer, *arguments, **named)
    except Exception as error:
        missing = str(error.args[0]) if isinstance(error, KeyError) and error.args else ""
        if missing.startswith("gt_"):
            raise DataError(
                f"TrainDataset gives no '{missing}', from which {type(trainer.model).__name__} "
                "learns; expected annotations that have it (gt_poly: masks), and its name in "
                "TrainDataset.data_fields"
            ) from error
        for callback in trainer._callbacks:
            if isinstance(callback, FiniteTraining):
                callback.explain(error)
        raise


def _init_metrics(trainer: Any, validate: bool = False) -> None:
    """`Trainer._init_metrics`: ppdet's, and for WIDER FACE one that computes AP.

    With ``multi_scale_eval`` at several scales, but not during training.
    """
    # Imported here because a program may import these first: they import ppdet, which leads here.
    from slim_det.evaluate.multi_scale import MultiScale
    from slim_det.evaluate.widerface.metric import FaceMetric

    cfg, training = trainer.cfg, trainer.mode == "train"
    if cfg.metric != "WiderFace" or trainer.mode == "test" or (training and not validate):
        _init_metrics_of_ppdet(trainer, validate)
        return
    dataset = cfg["EvalDataset"] if training else trainer.dataset
    several = not training and cfg.get("multi_scale_eval", False)
    detect = MultiScale(trainer.model, cfg) if several else None
    trainer._metrics = [FaceMetric(dataset, cfg.get("widerface_ground_truth"), detect)]

"""Checkpoints: weights, optimizer state, plan and record, saved together, loaded by one loader."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from slim_det.compress.prune.plan import (
    Plan,
    apply_plan,
    differing,
    plan_of,
    read_plan,
    resize_parameter,
    summary,
    tensor_shapes,
)
from slim_det.compress.quantize.model import quantize_model
from slim_det.compress.quantize.record import QuantRecord, read_record, record_of
from slim_det.core.errors import PlanError, QuantError, WeightsError
from slim_det.core.files import write_atomically
from slim_det.core.paddle_files import read_state
from slim_det.detectors.yolov3_head import is_class_output
from slim_det.training.optimizer_state import load_optimizer

logger = logging.getLogger("slim_det")

RECORD_SUFFIX = ".quant.json"
_RANGES = (".activation.limit", ".activation.step")
PLAN_SUFFIX = ".plan.json"


def checkpoint_stem(weights: str | Path) -> Path:
    """Path of a checkpoint without its suffix; downloads it first where it is an address.

    Without a network, a file that ppdet has downloaded before is taken as it is.

    Raises:
        WeightsError: No ``.pdparams`` file is there.
    """
    from ppdet.utils.checkpoint import get_weights_path, is_url
    from ppdet.utils.download import WEIGHTS_HOME, map_path

    text = str(weights)
    if is_url(text):
        try:
            text = get_weights_path(text)
        except Exception as error:
            text = map_path(text, WEIGHTS_HOME)
            if not Path(text).is_file():
                raise WeightsError(f"weights '{weights}' cannot be downloaded: {error}") from error
            logger.warning("'%s' cannot be reached; '%s' is used, unchecked", weights, text)
    for suffix in (".pdparams", ".pdopt", ".pdema", ".pdmodel"):
        if text.endswith(suffix):
            text = text[: -len(suffix)]
    stem = Path(text)
    if not params_path(stem).is_file():
        raise WeightsError(f"weights '{params_path(stem)}' do not exist; expected a .pdparams file")
    return stem


def params_path(stem: Path) -> Path:
    """Where a checkpoint keeps its weights."""
    return stem.with_name(stem.name + ".pdparams")


def plan_path(stem: Path) -> Path:
    """Where a checkpoint keeps its plan."""
    return stem.with_name(stem.name + PLAN_SUFFIX)


def stored_plan(weights: str | Path) -> Plan | None:
    """The plan beside a checkpoint; None where the weights are of a whole model."""
    path = plan_path(checkpoint_stem(weights))
    return read_plan(path) if path.is_file() else None


def record_path(stem: Path) -> Path:
    """Where a checkpoint keeps its quantization record."""
    return stem.with_name(stem.name + RECORD_SUFFIX)


def stored_record(weights: str | Path) -> QuantRecord | None:
    """The quantization record beside a checkpoint; None where the weights are of a float model."""
    path = record_path(checkpoint_stem(weights))
    return read_record(path) if path.is_file() else None


def load_weights(model: paddle.nn.Layer, weights: str | Path) -> None:
    """Replay the plan and the record beside the weights, if any, and load every tensor.

    Args:
        model: A freshly built model, or one that was cut by the same plan.
        weights: Checkpoint, with or without suffix.

    Raises:
        PlanError: The plan belongs to another model.
        WeightsError: The file is missing or damaged, or a tensor is missing, extra or of
            another shape; the first differences are shown.
    """
    stem = checkpoint_stem(weights)
    _replay(model, stem)
    state = read_state(params_path(stem))
    _check_shapes(model, state, stem)
    _set_state(model, state)
    logger.info("loaded %d tensors from %s", len(state), params_path(stem))


def load_pretrained(model: paddle.nn.Layer, weights: str | Path) -> None:
    """Load what a file has of a model, as the start of a training.

    A backbone's file fits the detector's backbone; prediction layers of another number of
    classes stay as they are. What was not loaded is said in one line.

    Raises:
        PlanError: The plan beside the weights belongs to another model.
        WeightsError: The file is missing or damaged, nothing of it fits, or a tensor that
            does not depend on the classes has another shape.
    """
    stem = checkpoint_stem(weights)
    _replay(model, stem)
    state = read_state(params_path(stem))
    shapes = tensor_shapes(model)
    matched = {name: _source_name(name, state) for name in shapes}
    found = {name: source for name, source in matched.items() if source}
    if not found:
        raise WeightsError(
            f"weights '{params_path(stem)}' have no tensor of this model; they hold "
            f"{', '.join(list(state)[:3])}, ..."
        )
    wrong = {n: s for n, s in found.items() if tuple(state[s].shape) != shapes[n]}
    strange = [name for name in wrong if not is_class_output(name)]
    if strange:
        phrases = [
            f"{n} is {list(state[wrong[n]].shape)} in the file and {list(shapes[n])} in the model"
            for n in strange
        ]
        raise WeightsError(
            f"weights '{params_path(stem)}' are of another width: {summary(phrases)}"
            f"{_plan_hint(stem, model)}"
        )
    _set_state(model, {n: state[s] for n, s in found.items() if n not in wrong})
    missing = [name for name in shapes if name not in found]
    unused = [name for name in state if name not in set(found.values())]
    logger.info(
        "pretrained: %d of %d tensors from %s%s%s%s",
        len(found) - len(wrong),
        len(shapes),
        params_path(stem),
        _named("; not in the file", missing),
        _named("; other classes", list(wrong)),
        _named("; not used", unused),
    )


def resume(
    model: paddle.nn.Layer, weights: str | Path, optimizer: Any = None, ema: Any = None
) -> int:
    """Load a checkpoint to go on training; what a cut model needs of the state is cut too.

    Args:
        model: The model that the optimizer was built for.
        weights: Checkpoint, with or without suffix.
        optimizer: Receives the state of ``.pdopt``.
        ema: ppdet's moving average of the weights; receives its state.

    Returns:
        The epoch to go on with.

    Raises:
        PlanError: The plan beside the weights is not the one of the model.
        WeightsError: A file is missing, damaged, or of another model.
    """
    stem = checkpoint_stem(weights)
    state = read_state(params_path(stem))
    whole = stored_plan(stem) is None
    _replay(model, stem)
    averaged = stem.with_name(stem.name + ".pdema")
    ema_state = None
    if ema is not None and averaged.is_file():
        # ppdet writes the average to .pdparams and the trained weights to .pdema.
        ema_state, state = state, read_state(averaged)
    for tensors in filter(None, (state, ema_state)):
        if whole:
            _cut_state(model, tensors)
        _check_shapes(model, tensors, stem)
    _set_state(model, state)
    last_epoch = 0
    if optimizer is not None:
        last_epoch = load_optimizer(model, stem.with_name(stem.name + ".pdopt"), optimizer)
    if ema_state is not None:
        step = optimizer.state_dict()["LR_Scheduler"]["last_epoch"] if optimizer else 0
        ema.resume({name: paddle.to_tensor(value) for name, value in ema_state.items()}, step)
    logger.info("resumed %s at epoch %d", params_path(stem), last_epoch)
    return last_epoch


def save(
    stem: Path,
    state: dict[str, Any],
    optimizer: Any,
    last_epoch: int,
    plan: Plan | None = None,
    record: QuantRecord | None = None,
    ema_state: dict[str, Any] | None = None,
    best: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint in ppdet's format, with its plan, so that it is whole or absent.

    Args:
        stem: Path without suffix.
        state: State dict to save as ``.pdparams``.
        optimizer: Its state goes to ``.pdopt``.
        last_epoch: Epochs done, kept in ``.pdopt``.
        plan: Goes to ``.plan.json``; None for a whole model.
        record: Goes to ``.quant.json``; None for a float model.
        ema_state: With a moving average: the average, saved as ``.pdparams``, while ``state``
            goes to ``.pdema``.
        best: Figures of the best model so far, kept in ``.json``.
    """
    optimizer_state = dict(optimizer.state_dict(), last_epoch=last_epoch)
    # Renamed in this order: a checkpoint is looked for by its `.pdparams`, which comes last.
    contents: dict[str, Any] = {".pdopt": optimizer_state, ".pdparams": state}
    if ema_state is not None:
        contents = {".pdema": state, ".pdopt": optimizer_state, ".pdparams": ema_state}
    extra = {} if best is None else {".json": _text_saver(json.dumps(best) + "\n")}
    _write(stem, contents, plan, record, extra)


def save_weights(
    stem: Path,
    state: dict[str, Any],
    plan: Plan | None = None,
    record: QuantRecord | None = None,
) -> None:
    """Write weights that no training goes on from, with plan and record, whole or not at all.

    Args:
        stem: Path without suffix.
        state: State dict to save as ``.pdparams``.
        plan: Goes to ``.plan.json``; None for a whole model.
        record: Goes to ``.quant.json``; None for a float model.
    """
    _write(stem, {".pdparams": state}, plan, record, {})


def _write(
    stem: Path,
    contents: dict[str, Any],
    plan: Plan | None,
    record: QuantRecord | None,
    extra: dict[str, Any],
) -> None:
    """Write the files of a checkpoint, renamed in this order: plan, record, extra, contents.

    Args:
        stem: Path without suffix.
        contents: Suffix -> what `paddle.save` writes.
        plan: None where an older plan is to go.
        record: None where an older record is to go.
        extra: Suffix -> function that writes the file.
    """
    files = {}
    if plan is not None:
        files[plan_path(stem)] = _text_saver(plan.to_json())
    if record is not None:
        files[record_path(stem)] = _text_saver(record.to_json())
    for suffix, writer in extra.items():
        files[stem.with_name(stem.name + suffix)] = writer
    for suffix, content in contents.items():
        files[stem.with_name(stem.name + suffix)] = _saver(content)
    write_atomically(files)
    for path, part in ((plan_path(stem), plan), (record_path(stem), record)):
        if part is None:
            path.unlink(missing_ok=True)
    logger.info("saved %s", params_path(stem))


def _cut_state(model: paddle.nn.Layer, state: dict[str, np.ndarray]) -> None:
    """Cut whole tensors as their model has been cut."""
    plan = plan_of(model)
    for name in plan.slices if plan else ():
        if plan and name in state and state[name].shape == plan.tensors[name]:
            state[name] = plan.slice(name, state[name])


def _replay(model: paddle.nn.Layer, stem: Path) -> None:
    """Bring a model to the shape and the quantization of a checkpoint."""
    _replay_plan(model, stem)
    record, stored = record_of(model), stored_record(stem)
    if stored is None:
        return
    if record is None:
        quantize_model(model, stored)
        logger.info("replayed %s: %d layers quantized", record_path(stem), len(stored.layers))
    elif not record.quantizes_like(stored):
        raise QuantError(
            f"'{record_path(stem)}' quantizes otherwise than this run; resume without --slim_config"
        )


def _replay_plan(model: paddle.nn.Layer, stem: Path) -> None:
    plan, stored = plan_of(model), stored_plan(stem)
    if stored is None:
        return
    if plan is None:
        apply_plan(model, stored, f"'{plan_path(stem)}'")
        logger.info("replayed %s: %d groups cut", plan_path(stem), len(stored.groups))
    elif not plan.cuts_like(stored):
        raise PlanError(
            f"'{plan_path(stem)}' cuts other channels than this run; resume without --slim_config"
        )


def _check_shapes(model: paddle.nn.Layer, state: dict[str, np.ndarray], stem: Path) -> None:
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    differences = differing(shapes, tensor_shapes(model), "file", "model")
    if differences:
        raise WeightsError(
            f"weights '{params_path(stem)}' do not fit the model: {summary(differences)}"
            f"{_class_hint(model, shapes)}{_plan_hint(stem, model, shapes)}"
        )


def _class_hint(model: paddle.nn.Layer, shapes: dict[str, tuple[int, ...]]) -> str:
    """Say it in words where only the number of classes differs."""
    head = getattr(model, "yolo_head", None)
    name = "yolo_head.yolo_output.0.bias"
    if head is None or name not in shapes or not hasattr(head, "num_classes"):
        return ""
    classes = shapes[name][0] // len(head.anchors[0]) - 5
    if classes == head.num_classes:
        return ""
    return f"; the file is of {classes} classes, num_classes is {head.num_classes}"


def _plan_hint(
    stem: Path, model: paddle.nn.Layer, shapes: dict[str, tuple[int, ...]] | None = None
) -> str:
    """Which file is missing beside the weights, as far as it can be told."""
    if any(name.endswith(_RANGES) for name in shapes or {}) and record_of(model) is None:
        return f"; a quantized model's weights need '{record_path(stem).name}' beside them"
    if plan_path(stem).is_file() or plan_of(model) is not None:
        return ""
    return f"; a pruned model's weights need '{plan_path(stem).name}' beside them"


def _set_state(model: paddle.nn.Layer, state: dict[str, np.ndarray]) -> None:
    parameters = dict(model.named_parameters())
    for name, value in state.items():
        if not np.isfinite(value).all():
            raise WeightsError(f"'{name}' holds values that are not finite")
    for name, value in state.items():
        dtype = str(parameters[name].dtype).rpartition(".")[2]
        resize_parameter(parameters[name], value.astype(dtype))


def _source_name(name: str, state: dict[str, np.ndarray]) -> str:
    """The file's name for a tensor: its own, or without the leading part (`backbone.`)."""
    if name in state:
        return name
    _, _, rest = name.partition(".")
    return rest if rest in state else ""


def _saver(content: Any) -> Any:
    return lambda path: paddle.save(content, path)


def _text_saver(text: str) -> Any:
    return lambda path: Path(path).write_text(text, encoding="utf-8")


def _named(label: str, names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:3]) + (f", ... ({len(names)} in all)" if len(names) > 3 else "")
    return f"{label}: {shown}"

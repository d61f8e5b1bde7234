"""Checkpoints: weights, optimizer state and steps, which are saved and loaded together."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from slim_det.compress.steps import Step, StepKind, step_of, steps_of
from slim_det.compress.strategy import read_steps, restore_step, step_kinds, step_path
from slim_det.compress.tensors import (
    differing,
    other_names,
    set_parameter,
    stored_constants,
    summary,
    tensor_shapes,
)
from slim_det.core.errors import SlimDetError, WeightsError
from slim_det.core.files import write_atomically
from slim_det.core.paddle_files import read_state
from slim_det.detectors.yolov3_head import is_class_output
from slim_det.detectors.yolov3_outputs import class_hint
from slim_det.training.optimizer_state import load_optimizer

logger = logging.getLogger("slim_det")


def checkpoint_stem(weights: str | Path) -> Path:
    """Path of a checkpoint without its suffix; an address is downloaded first.

    Without a network, a file that ppdet downloaded earlier is used unchecked.

    Raises:
        WeightsError: There is no ``.pdparams`` file.
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


def stored_step(weights: str | Path, kind: type[StepKind]) -> StepKind | None:
    """The step of one kind beside a checkpoint; None if there is none."""
    steps = read_steps(checkpoint_stem(weights))
    return next((step for step in steps if isinstance(step, kind)), None)


def load_weights(model: paddle.nn.Layer, weights: str | Path) -> None:
    """Repeat the steps beside the weights, if any, and load every tensor.

    Args:
        model: A freshly built model, or one that was changed by the same steps.
        weights: Checkpoint, with or without suffix.

    Raises:
        SlimDetError: A step belongs to another model.
        WeightsError: The file is missing or damaged, or a tensor is missing, extra or of
            another shape; the first differences are shown.
    """
    stem = checkpoint_stem(weights)
    _restore(model, stem)
    state = _read(model, params_path(stem))
    _check_shapes(model, state, stem)
    _set_state(model, state)
    logger.info("loaded %d tensors from %s", len(state), params_path(stem))


def load_pretrained(model: paddle.nn.Layer, weights: str | Path) -> None:
    """Load every tensor that fits, to start a training; the others are logged.

    A backbone's file fits the detector's backbone; prediction layers for another number of
    classes keep their initial values.

    Raises:
        SlimDetError: A step beside the weights belongs to another model.
        WeightsError: The file is missing or damaged, no tensor fits, or one that does not depend
            on the classes has another shape.
    """
    stem = checkpoint_stem(weights)
    _restore(model, stem)
    state = _read(model, params_path(stem))
    shapes = tensor_shapes(model)
    sources = {name: _source_name(name, state) for name in shapes}
    found = {name: state[source] for name, source in sources.items() if source}
    if not found:
        raise WeightsError(
            f"weights '{params_path(stem)}' have no tensor of this model; they hold "
            f"{', '.join(list(state)[:3])}, ..."
        )
    wrong = {name: value.shape for name, value in found.items() if value.shape != shapes[name]}
    strange = {name: shape for name, shape in wrong.items() if not is_class_output(name)}
    if strange:
        expected = {name: shapes[name] for name in strange}
        raise WeightsError(
            f"weights '{params_path(stem)}' are of another width: "
            f"{summary(differing(strange, expected, 'file', 'model'))}{_step_hint(stem, model)}"
        )
    _set_state(model, {name: value for name, value in found.items() if name not in wrong})
    missing = [name for name in shapes if name not in found]
    unused = [name for name in state if name not in sources.values()]
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
    """Load a checkpoint to continue its training.

    Tensors from before a step that only the model has are brought to their new shape.

    Args:
        model: The model that the optimizer was built for.
        weights: Checkpoint, with or without suffix.
        optimizer: Receives the state in ``.pdopt``.
        ema: ppdet's moving average of the weights; receives its state.

    Returns:
        The epoch to continue with.

    Raises:
        SlimDetError: A step beside the weights contradicts the model's.
        WeightsError: A file is missing, damaged, or of another model.
    """
    stem = checkpoint_stem(weights)
    state = _read(model, params_path(stem))
    new_steps = _restore(model, stem)
    averaged = stem.with_name(stem.name + ".pdema")
    ema_state = None
    if ema is not None and averaged.is_file():
        # ppdet writes the average to .pdparams and the trained weights to .pdema.
        ema_state, state = state, _read(model, averaged)
    for tensors in filter(None, (state, ema_state)):
        for step in new_steps:
            tensors.update({name: step.fit(name, value) for name, value in tensors.items()})
        _check_shapes(model, tensors, stem)
    _set_state(model, state)
    last_epoch = 0
    if optimizer is not None:
        last_epoch = load_optimizer(model, stem.with_name(stem.name + ".pdopt"), optimizer)
    if ema_state is not None:
        count = optimizer.state_dict()["LR_Scheduler"]["last_epoch"] if optimizer else 0
        ema_state.update({n: ema_state[first] for n, first in other_names(model).items()})
        ema.resume({name: paddle.to_tensor(value) for name, value in ema_state.items()}, count)
    for step in steps_of(model):
        step.resume(stem)
    logger.info("resumed %s at epoch %d", params_path(stem), last_epoch)
    return last_epoch


def save(
    stem: Path,
    state: dict[str, Any],
    optimizer: Any,
    last_epoch: int,
    steps: Sequence[Step] = (),
    ema_state: dict[str, Any] | None = None,
    best: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint in ppdet's format with its steps, complete or not at all.

    Args:
        stem: Path without suffix.
        state: State dict of the trained model, saved as ``.pdparams``, or as ``.pdema`` if there is
            a moving average.
        optimizer: Its state goes to ``.pdopt``.
        last_epoch: Epochs done, kept in ``.pdopt``.
        steps: What was done to the model; each has its own file.
        ema_state: State dict of the moving average, saved as ``.pdparams``; None without one.
        best: Figures of the best model so far, kept in ``.json``.
    """
    optimizer_state = dict(optimizer.state_dict(), last_epoch=last_epoch)
    # Renamed in this order: a checkpoint is found by its `.pdparams`, which comes last.
    contents: dict[str, Any] = {".pdopt": optimizer_state, ".pdparams": state}
    if ema_state is not None:
        contents = {".pdema": state, ".pdopt": optimizer_state, ".pdparams": ema_state}
    _write(stem, steps, contents, best)


def save_weights(stem: Path, state: dict[str, Any], steps: Sequence[Step] = ()) -> None:
    """Write weights with their steps but without optimizer state (see `save`)."""
    _write(stem, steps, {".pdparams": state})


def _write(
    stem: Path,
    steps: Sequence[Step],
    contents: dict[str, Any],
    best: dict[str, Any] | None = None,
) -> None:
    """Write steps, ``best`` and contents (by suffix), and remove the files of other steps."""
    files: dict[Path, Any] = {
        step_path(stem, type(step)): step.write for step in steps if step.has_file
    }
    gone = [path for kind in step_kinds() if (path := step_path(stem, kind)) not in files]
    if best is not None:
        text = json.dumps(best) + "\n"
        files[stem.with_name(stem.name + ".json")] = lambda path: Path(path).write_text(text)
    for suffix, content in contents.items():
        files[stem.with_name(stem.name + suffix)] = functools.partial(paddle.save, content)
    write_atomically(files)
    for path in gone:
        path.unlink(missing_ok=True)
    logger.info("saved %s", params_path(stem))


def _restore(model: paddle.nn.Layer, stem: Path) -> list[Step]:
    """Repeat the steps of a checkpoint on a model, unless it has them already.

    Returns:
        The model's steps that the checkpoint does not have.
    """
    stored = read_steps(stem)
    kinds = [type(step) for step in stored]
    new_steps = [step for step in steps_of(model) if type(step) not in kinds]
    for step in stored:
        path = step_path(stem, type(step))
        done = step_of(model, type(step))
        if done is None:
            try:
                restore_step(model, step)
            except SlimDetError as error:
                raise type(error)(f"'{path}': {error}") from error
            logger.info("replayed %s: %s", path, step)
        elif done.differs(step):
            raise step.error(
                f"'{path}' {done.differs(step)} than this run; resume without --slim_config"
            )
    return new_steps


def _read(model: paddle.nn.Layer, path: Path) -> dict[str, np.ndarray]:
    """The tensors of a file, each under the name that `named_parameters` gives it.

    Raises:
        WeightsError: The file is missing or damaged, two names of one parameter have different
            values, or a constant is not the one of the model.
    """
    state, names = read_state(path), other_names(model)
    for name, tensor in stored_constants(model).items():
        value = state.pop(name, None)
        if value is not None and not _is_same(value, tensor.numpy()):
            raise WeightsError(
                f"weights '{path}': '{name}' is not what the configuration gives; expected weights "
                "that were trained with the same settings"
            )
    for name in names.keys() & state.keys():
        value = state.pop(name)
        if not _is_same(value, state.setdefault(names[name], value)):
            raise WeightsError(
                f"weights '{path}': '{name}' and '{names[name]}' are one parameter and differ"
            )
    return state


def _is_same(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether values agree but for what a moving average of equal values loses by rounding."""
    return left.shape == right.shape and np.allclose(left, right, 1e-3, 1e-5, equal_nan=True)


def _check_shapes(model: paddle.nn.Layer, state: dict[str, np.ndarray], stem: Path) -> None:
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    differences = differing(shapes, tensor_shapes(model), "file", "model")
    if differences:
        raise WeightsError(
            f"weights '{params_path(stem)}' do not fit the model: {summary(differences)}"
            f"{class_hint(model, shapes)}{_step_hint(stem, model, shapes)}"
        )


def _step_hint(stem: Path, model: paddle.nn.Layer, names: Iterable[str] = ()) -> str:
    """Which file may be missing beside weights with these tensor names."""
    for kind in reversed(step_kinds()):
        if kind.explains(names) and step_of(model, kind) is None:
            return (
                f"; a {kind.state} model's weights need '{step_path(stem, kind).name}' beside them"
            )
    return ""


def _set_state(model: paddle.nn.Layer, state: dict[str, np.ndarray]) -> None:
    parameters = dict(model.named_parameters())
    for name, value in state.items():
        if not np.isfinite(value).all():
            raise WeightsError(f"'{name}' holds values that are not finite")
    for name, value in state.items():
        dtype = str(parameters[name].dtype).rpartition(".")[2]
        set_parameter(parameters[name], value.astype(dtype))


def _source_name(name: str, state: dict[str, np.ndarray]) -> str:
    """The file's name of a tensor: the same, or without the first part (``backbone.``)."""
    if name in state:
        return name
    _, _, rest = name.partition(".")
    return rest if rest in state else ""


def _named(label: str, names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:3]) + (f", ... ({len(names)} in all)" if len(names) > 3 else "")
    return f"{label}: {shown}"

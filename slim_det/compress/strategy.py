"""The protocol of a strategy: what ``slim`` in a slim file names.

Every strategy, ours or a user's, is registered with ppdet's `@register`. What it does to a model
is kept as a `Step` (see `slim_det.compress.steps`).
"""

from __future__ import annotations

import glob
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import paddle
from ppdet.core.config.schema import SchemaDict
from ppdet.core.workspace import global_config

from slim_det.compress.hook import Hook
from slim_det.compress.steps import SCHEMA, Step, attach_step, steps_of
from slim_det.core.errors import ConfigError, WeightsError
from slim_det.core.files import read_json

_POSTPONED = "slim_postponed"

Purpose = Literal["train", "resume", "use", "prune", "calibrate"]


def _not_given(*_: Any) -> Any:
    raise NotImplementedError("this context cannot build detectors")


@dataclass(frozen=True)
class Context:
    """What a strategy may need besides the model.

    Attributes:
        cfg: ppdet's configuration.
        image_size_hw: Height and width at which the detector is deployed, in pixels.
        purpose: What the model is for: a new training, a resumed one, use (evaluation, inference
            or export), pruning without training, or a calibration.
        weights: Where the model's weights come from, for messages.
        asked_by: The slim file, for messages.
        build_detector: ``() -> model`` of ``cfg``, before any strategy.
        load_detector: ``(configuration, weights) -> (model, its cfg)`` of another detector; the
            configuration is a path or a mapping.
    """

    cfg: Any
    image_size_hw: tuple[int, int]
    purpose: Purpose = "train"
    weights: str = ""
    asked_by: str = "this run"
    build_detector: Callable[[], paddle.nn.Layer] = _not_given
    load_detector: Callable[
        [str | Mapping[str, Any], str], tuple[paddle.nn.Layer, dict[str, Any]]
    ] = _not_given

    @property
    def is_training(self) -> bool:
        """Whether the model will be trained."""
        return self.purpose in ("train", "resume")


class Strategy:
    """A way to compress a detector. Settings in a slim file are arguments of its constructor.

    Attributes:
        step: Kind of step that it attaches to the model; None if it attaches none.
        hooks: Callbacks for training a model that has such a step.
        comes_after: Strategies that precede it if a chain names both.
        comes_before: Strategies that follow it if a chain names both.
        excludes: Strategies that cannot be in one chain with it -> the reason.
        only_in_training: Whether it acts only on a model that will be trained.
        waits: Whether it acts at the user's command (``slim-det quantize``, PaddleDetection's
            ``tools/post_quant.py``) and not when the model is built.
    """

    step: ClassVar[type[Step] | None] = None
    hooks: ClassVar[tuple[type[Hook], ...]] = ()
    comes_after: ClassVar[tuple[str, ...]] = ()
    comes_before: ClassVar[tuple[str, ...]] = ()
    excludes: ClassVar[Mapping[str, str]] = {}
    only_in_training: ClassVar[bool] = False
    waits: ClassVar[bool] = False

    def __call__(self, model: paddle.nn.Layer, context: Context) -> paddle.nn.Layer:
        """Change a model that has its weights; called before a Trainer exists.

        Returns:
            The changed model, its step attached.
        """
        raise NotImplementedError(f"{type(self).__name__} does nothing")

    @classmethod
    def restore(cls, model: paddle.nn.Layer, step: Any) -> None:
        """Repeat a step on a freshly built model, in place.

        Args:
            model: Its weights are loaded afterwards.
            step: Of the kind `step`, read from the file beside the weights.

        Raises:
            SlimDetError: The step belongs to another model.
        """
        raise NotImplementedError(f"{cls.__name__} cannot be restored")

    def adopt(self, model: paddle.nn.Layer, step: Any, context: Context) -> None:
        """Check that what was done to the weights is what these settings ask for.

        Called instead of the strategy if the weights have its step already. A strategy that can
        be applied twice may do so here. This default accepts any step.

        Raises:
            SlimDetError: The settings contradict the step.
        """

    @classmethod
    def advance(cls, model: paddle.nn.Layer, step: Any, context: Context) -> None:
        """Do the next part of a step that is spread over a training, in place.

        A hook of the strategy calls it through `advance_step`. The parameters stay the same
        objects, because an optimizer exists.

        Args:
            model: The model as it is trained now.
            step: What was done to it so far.
            context: As for the strategy itself; only the configuration and `build_detector` are
                known.
        """
        raise NotImplementedError(f"{cls.__name__} acts at once")

    @classmethod
    def check_purpose(cls, context: Context) -> None:
        """Check the purpose before weights are read.

        Raises:
            ConfigError: The strategy cannot serve this purpose.
        """

    @classmethod
    def check_weights(cls, model: paddle.nn.Layer, context: Context) -> None:
        """Check weights that have no step of this strategy.

        Raises:
            SlimDetError: It is too late for the strategy, or its step was expected.
        """
        for step in steps_of(model):
            later = any(_precedes(cls, other) for other in _strategies_of(type(step)))
            if later and not cls.only_in_training:
                raise step.error(
                    f"'{context.weights}' are {step.state} and {context.asked_by} asks for "
                    f"{cls.__name__}, which has to come first; expected weights that are not "
                    f"{step.state}"
                )

    @classmethod
    def read_slim_file(cls, tree: dict[str, Any], path: str) -> dict[str, Any]:
        """Translate a slim file that names the strategy into today's keys.

        Args:
            tree: The content of the file without ``slim``.
            path: The file, for messages.

        Raises:
            ConfigError: The file contradicts itself, or lacks something.
        """
        return tree


def registered_strategies() -> dict[str, type[Strategy]]:
    """Name -> strategy, for every strategy that is registered with ppdet."""
    found = {}
    for name, component in global_config.items():
        if isinstance(component, SchemaDict):
            kind = getattr(component.pymodule, name, None)
            if isinstance(kind, type) and issubclass(kind, Strategy):
                found[name] = kind
    return found


def in_order(names: Sequence[str]) -> list[str]:
    """Sort strategies so that they can be applied, keeping the given order where possible.

    Raises:
        ConfigError: Their declarations contradict each other.
    """
    kinds = registered_strategies()
    left, placed = list(names), []
    while left:
        free = [n for n in left if not any(_precedes(kinds[other], kinds[n]) for other in left)]
        if not free:
            raise ConfigError(f"slim: {', '.join(left)}: each has to come before another")
        left.remove(free[0])
        placed.append(free[0])
    return placed


def hooks_of(model: paddle.nn.Layer) -> list[type[Hook]]:
    """The training callbacks of the strategies whose steps a model has."""
    done = {type(step) for step in steps_of(model)}
    kinds = registered_strategies().values()
    return list(dict.fromkeys(hook for kind in kinds if kind.step in done for hook in kind.hooks))


def step_kinds() -> list[type[Step]]:
    """Every kind of step that has a file, in the order of the strategies."""
    kinds = registered_strategies()
    steps = (kinds[name].step for name in in_order(list(kinds)))
    return list(dict.fromkeys(step for step in steps if step is not None and step.suffix))


def restore_step(model: paddle.nn.Layer, step: Step) -> None:
    """Repeat a step on a model through its strategy, and attach it.

    Raises:
        SlimDetError: The step belongs to another model.
    """
    _strategies_of(type(step))[0].restore(model, step)
    attach_step(model, step)


def advance_step(model: paddle.nn.Layer, step: Step, context: Context) -> None:
    """Do the next part of a step through its strategy (see `Strategy.advance`)."""
    _strategies_of(type(step))[0].advance(model, step, context)


def step_path(stem: Path, kind: type[Step]) -> Path:
    """Where a checkpoint, given without suffix, keeps its step of one kind."""
    return stem.with_name(stem.name + kind.suffix)


def read_steps(stem: Path) -> list[Step]:
    """What was done to the model of a checkpoint, in order.

    Args:
        stem: Path of the checkpoint without suffix.

    Raises:
        SlimDetError: A file is damaged, or left by a strategy that is not registered.
    """
    kinds = [kind for kind in step_kinds() if kind.changes_model]
    _check_known(stem, {kind.suffix for kind in kinds})
    found = [kind.read(path) for kind in kinds if (path := step_path(stem, kind)).is_file()]
    steps = [step for step in found if step.place is None]
    for step in sorted(found, key=lambda step: step.place or 0):
        if step.place is not None:
            steps.insert(step.place, step)
    return steps


def postpone(model: paddle.nn.Layer, strategy: Strategy) -> None:
    """Note on a model the strategy to apply at the user's command."""
    object.__setattr__(model, _POSTPONED, strategy)


def postponed(model: paddle.nn.Layer) -> Strategy | None:
    """The strategy to apply to a model at the user's command, if any."""
    return getattr(model, _POSTPONED, None)


def _strategies_of(kind: type[Step]) -> list[type[Strategy]]:
    return [strategy for strategy in registered_strategies().values() if strategy.step is kind]


def _precedes(first: type[Strategy], second: type[Strategy]) -> bool:
    return first.__name__ in second.comes_after or second.__name__ in first.comes_before


def _check_known(stem: Path, known: set[str]) -> None:
    """Refuse weights with the step of a strategy that is not registered."""
    for path in sorted(stem.parent.glob(f"{glob.escape(stem.name)}.*.json")):
        suffix = path.name[len(stem.name) :]
        if suffix.count(".") == 2 and suffix not in known and _is_step(path):
            raise WeightsError(
                f"'{path}' was left by a strategy that is not registered; import the module that "
                "defines it"
            )


def _is_step(path: Path) -> bool:
    try:
        read_json(path, "step", SCHEMA, WeightsError)
    except WeightsError:
        return False
    return True

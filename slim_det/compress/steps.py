"""What was done to a model: one ordered list of steps, each kept in a file beside the weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import paddle

from slim_det.core.errors import SlimDetError, WeightsError
from slim_det.core.files import read_json
from slim_det.version import __version__

SCHEMA = "slim_det.step/1"
"""Of the files of steps that bring no format of their own."""

_ATTRIBUTE = "slim_steps"


class Step:
    """What a strategy did to a model: enough to do it again to a freshly built one.

    A subclass is a dataclass whose fields are JSON values. One with a format of its own overrides
    `to_json` and `read`.

    Attributes:
        suffix: Of its file beside the weights, such as ``.plan.json``; '' where it has none.
        state: What it makes of a model, in one word for messages: ``pruned``, ``quantized``.
        error: What is raised where its file cannot be read or contradicts the model.
        changes_model: False for what lasts for a training only: weights are loaded without its
            file, and `resume` reads it.
        place: How many steps that change the model came before it; None where its file does not
            say so.
    """

    suffix: ClassVar[str] = ""
    state: ClassVar[str] = "changed"
    error: ClassVar[type[SlimDetError]] = WeightsError
    changes_model: ClassVar[bool] = True
    place: int | None = None

    def __str__(self) -> str:
        """One phrase for people."""
        return self.state

    @property
    def has_file(self) -> bool:
        """Whether there is anything to keep beside the weights."""
        return bool(self.suffix)

    def differs(self, other: Any) -> str:
        """How another step of this kind differs, in words; '' where both do the same.

        Args:
            other: Read from the file beside the weights.
        """
        return "" if self == other else "says something else"

    def fit(self, name: str, value: np.ndarray) -> np.ndarray:
        """Bring a tensor from before this step to the shape that it has afterwards.

        Args:
            name: State-dict name of the tensor, or of the parameter whose optimizer state it is.
            value: Returned as it is where it has another shape than before the step.
        """
        return value

    def resume(self, stem: Path) -> None:
        """Load what a training has left beside its weights, to continue it."""

    def write(self, path: str | Path) -> None:
        """Write the step's file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """The step as JSON text."""
        content = {
            "schema": SCHEMA,
            "slim_det": __version__,
            "place": self.place,
            "fields": asdict(self),  # type: ignore[call-overload]
        }
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def read(cls, path: str | Path) -> Step:
        """Read the step's file.

        Raises:
            SlimDetError: Of the class `error`: the file is missing, damaged, or of another kind.
        """
        data = read_json(path, "step", SCHEMA, cls.error)
        try:
            step = cls(**data["fields"])
            object.__setattr__(step, "place", int(data["place"]))
        except (KeyError, TypeError, ValueError) as error:
            raise cls.error(f"step '{path}' is damaged: {error}") from error
        return step

    @classmethod
    def explains(cls, names: Iterable[str]) -> bool:
        """Whether weights that do not fit may be of a model with such a step.

        Args:
            names: State-dict names of the weights' file.
        """
        return False


StepKind = TypeVar("StepKind", bound=Step)


def steps_of(model: paddle.nn.Layer) -> list[Step]:
    """What was done to a model, in the order in which it was done."""
    return list(getattr(model, _ATTRIBUTE, ()))


def step_of(model: paddle.nn.Layer, kind: type[StepKind]) -> StepKind | None:
    """The step of one kind; None where the model has none."""
    return next((step for step in steps_of(model) if isinstance(step, kind)), None)


def attach_step(model: paddle.nn.Layer, step: Step) -> None:
    """Remember on the model what was done to it; a step of the same kind is replaced."""
    steps = steps_of(model)
    kinds = [type(other) for other in steps]
    index = kinds.index(type(step)) if type(step) in kinds else len(steps)
    place = sum(other.changes_model for other in steps[:index])
    object.__setattr__(step, "place", place)
    object.__setattr__(model, _ATTRIBUTE, (*steps[:index], step, *steps[index + 1 :]))


def detach_step(model: paddle.nn.Layer, step: Step | None) -> None:
    """Forget a step; the model itself is not changed."""
    left = tuple(other for other in steps_of(model) if other is not step)
    object.__setattr__(model, _ATTRIBUTE, left)

"""Steps: what was done to a model, in order, each kept in a file beside the weights."""

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
"""Format of the steps that have no format of their own."""

_ATTRIBUTE = "slim_steps"

_DAMAGE = (IndexError, TypeError, ArithmeticError, ValueError, AttributeError, SlimDetError)

StepKind = TypeVar("StepKind", bound="Step")


class Step:
    """What a strategy did to a model: enough to repeat it on a freshly built one.

    A subclass is a dataclass whose fields are JSON values. One with other fields overrides
    `content` and `from_content`.

    Attributes:
        suffix: Of its file beside the weights, such as ``.plan.json``; '' if it has none.
        schema: Format of its file.
        title: What messages call its file.
        state: What it makes of a model, in one word for messages: ``pruned``, ``quantized``.
        error: Raised if its file cannot be read or contradicts the model.
        changes_model: False for a step of the training only: weights are loaded without its file,
            and `resume` reads it.
        place: Number of steps before it that change the model; None if its file does not tell.
    """

    suffix: ClassVar[str] = ""
    schema: ClassVar[str] = SCHEMA
    title: ClassVar[str] = "step"
    state: ClassVar[str] = "changed"
    error: ClassVar[type[SlimDetError]] = WeightsError
    changes_model: ClassVar[bool] = True
    place: int | None = None

    def __str__(self) -> str:
        """A short description."""
        return self.state

    @property
    def has_file(self) -> bool:
        """Whether there is anything to keep beside the weights."""
        return bool(self.suffix)

    @property
    def forbids_slicing(self) -> str:
        """Why a trained model with this step cannot lose channels, in words; '' if it can."""
        return f"the model is {self.state}" if self.changes_model else ""

    def differs(self, other: Any) -> str:
        """How the step that was read from a file differs, in words; '' if both do the same."""
        return "" if self == other else "says something else"

    def fit(self, name: str, value: np.ndarray) -> np.ndarray:
        """Bring a tensor from before this step to the shape that it has afterwards.

        Args:
            name: State-dict name of the tensor, or of the parameter whose optimizer state it is.
            value: Returned unchanged unless it has the shape from before the step.
        """
        return value

    def resume(self, stem: Path) -> None:
        """Load what a training has left beside its weights, to continue it."""

    def write(self, path: str | Path) -> None:
        """Write the step's file."""
        Path(path).write_text(self.to_json(), encoding="utf-8")

    def to_json(self) -> str:
        """The step as JSON text."""
        return json.dumps(self.as_dict(), indent=1) + "\n"

    def as_dict(self) -> dict[str, Any]:
        """What the step's file holds."""
        return {"schema": self.schema, "slim_det": __version__, **self.content()}

    def content(self) -> dict[str, Any]:
        """What the step's file holds besides format and version, as JSON values."""
        return {"place": self.place, "fields": asdict(self)}  # type: ignore[call-overload]

    @classmethod
    def from_content(cls: type[StepKind], content: dict[str, Any]) -> StepKind:
        """The inverse of `content`; any error means that the file is damaged."""
        step = cls(**content["fields"])
        object.__setattr__(step, "place", int(content["place"]))
        return step

    @classmethod
    def read(cls: type[StepKind], path: str | Path) -> StepKind:
        """Read the step's file.

        Raises:
            SlimDetError: Of the class `error`: the file is missing, damaged, or of another kind.
        """
        content = read_json(path, cls.title, cls.schema, cls.error)
        try:
            return cls.from_content(content)
        except KeyError as error:
            raise cls.error(f"{cls.title} '{path}' is damaged: no {error}") from error
        except _DAMAGE as error:
            raise cls.error(f"{cls.title} '{path}' is damaged: {error}") from error

    @classmethod
    def explains(cls, names: Iterable[str]) -> bool:
        """Whether weights with these tensor names, which do not fit, may need such a step."""
        return False


def steps_of(model: paddle.nn.Layer) -> list[Step]:
    """What was done to a model, in order."""
    return list(getattr(model, _ATTRIBUTE, ()))


def step_of(model: paddle.nn.Layer, kind: type[StepKind]) -> StepKind | None:
    """The step of one kind; None if the model has none."""
    return next((step for step in steps_of(model) if isinstance(step, kind)), None)


def attach_step(model: paddle.nn.Layer, step: Step) -> None:
    """Note on the model what was done to it; a step of the same kind is replaced."""
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

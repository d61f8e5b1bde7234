"""The plan of a pruning: every structural change of a model, as JSON beside its weights."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import paddle

from slim_det.compress.prune.schedule import Steps
from slim_det.compress.steps import Step, attach_step, step_of
from slim_det.compress.tensors import (
    differing,
    fingerprint,
    set_parameter,
    sliced,
    summary,
    tensor_shapes,
)
from slim_det.core.errors import PlanError, SlimDetError


@dataclass
class Plan(Step):
    """What was removed from a model: the step of a pruning.

    Attributes:
        architecture: Class name of the model, e.g. ``YOLOv3``.
        tensors: State-dict name -> shape before pruning; identifies the model.
        image_size_hw: Image size of the costs, in pixels.
        settings: What was requested last: criterion, ratio of each group, align, seed. ``earlier``
            lists the settings of the cuts before it, ``schedule`` the steps it was divided into
            (see `slim_det.compress.prune.schedule`); both are absent where there are none.
        cost: ``{"before": ..., "after": ...}`` with the keys of `slim_det.graph.cost.Cost`.
        groups: Group name -> {"channels", "kept"}: kept unit indices of the first member.
        slices: State-dict name -> {axis: kept indices}.
        depthwise: Weight name -> its new number of groups.
        repair: How the layers were repaired after the cut, as JSON values; None if they were not.
        continues: Whether the training of the model makes the steps of the schedule that are left.
            It is not in the file: weights that a new training starts from stay as they are.
    """

    suffix: ClassVar[str] = ".plan.json"
    schema: ClassVar[str] = "slim_det.plan/1"
    title: ClassVar[str] = "plan"
    state: ClassVar[str] = "pruned"
    error: ClassVar[type[SlimDetError]] = PlanError

    architecture: str
    tensors: dict[str, tuple[int, ...]]
    image_size_hw: tuple[int, int]
    settings: dict[str, Any]
    cost: dict[str, dict[str, float]]
    groups: dict[str, dict[str, Any]]
    slices: dict[str, dict[int, np.ndarray]]
    depthwise: dict[str, int] = field(default_factory=dict)
    repair: dict[str, Any] | None = None
    continues: bool = False

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the names and shapes of the unpruned model."""
        return fingerprint(self.architecture, self.tensors)

    @property
    def steps(self) -> Steps | None:
        """The steps of its schedule; None if it has none."""
        schedule = self.settings.get("schedule")
        return Steps(**schedule) if schedule else None

    @property
    def forbids_slicing(self) -> str:
        """Nothing: a pruned model can be pruned further."""
        return ""

    def shapes_after(self) -> dict[str, tuple[int, ...]]:
        """State-dict name -> shape after pruning, for the tensors that change."""
        return sliced_shapes(self.tensors, self.slices)

    def differs(self, other: Plan) -> str:
        """Whether another plan removes other channels, or is of another model."""
        same = self.tensors == other.tensors and _lists(self.slices) == _lists(other.slices)
        return "" if same else "cuts other channels"

    def resume(self, stem: Path) -> None:
        """Go on with the schedule, if there is one."""
        self.continues = True

    def fit(self, name: str, value: np.ndarray) -> np.ndarray:
        """Slice a tensor that has its shape from before pruning."""
        return self.slice(name, value) if value.shape == self.tensors.get(name) else value

    def slice(self, name: str, value: np.ndarray) -> np.ndarray:
        """Keep the remaining channels of a tensor, or of its optimizer state of equal shape."""
        return sliced(value, self.slices.get(name, {}))

    def to_json(self) -> str:
        """The plan as JSON text, with one line per entry of a table."""
        return _dump(self.as_dict())

    def content(self) -> dict[str, Any]:
        """What its file holds; without a repair it is that of a version that had none."""
        return {
            "architecture": self.architecture,
            "fingerprint": self.fingerprint,
            "image_size_hw": list(self.image_size_hw),
            "settings": self.settings,
            "cost": self.cost,
            "groups": self.groups,
            "depthwise": self.depthwise,
            **({} if self.repair is None else {"repair": self.repair}),
            "slices": _lists(self.slices),
            "tensors": {name: list(shape) for name, shape in self.tensors.items()},
        }

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> Plan:
        """The inverse of `content`."""
        for key in ("tensors", "settings", "cost", "groups", "slices", "depthwise"):
            if not isinstance(content[key], dict):
                raise TypeError(f"'{key}' is {type(content[key]).__name__}, expected a mapping")
        plan = Plan(
            architecture=content["architecture"],
            tensors={name: tuple(shape) for name, shape in content["tensors"].items()},
            image_size_hw=tuple(content["image_size_hw"]),
            settings=content["settings"],
            cost=content["cost"],
            groups=content["groups"],
            slices={
                name: {int(axis): np.asarray(kept, np.int64) for axis, kept in axes.items()}
                for name, axes in content["slices"].items()
            },
            depthwise=content["depthwise"],
            repair=content.get("repair"),
        )
        _check_indices(plan)
        _ = plan.steps  # raises an error if the schedule is damaged
        if plan.fingerprint != content["fingerprint"]:
            raise ValueError("its fingerprint does not match its tensors")
        return plan

    @classmethod
    def explains(cls, names: Iterable[str]) -> bool:
        """Any tensor may have been pruned."""
        return True

    def __str__(self) -> str:
        """A short description."""
        return f"{len(self.groups)} groups cut"


def sliced_shapes(
    tensors: dict[str, tuple[int, ...]], slices: dict[str, dict[int, np.ndarray]]
) -> dict[str, tuple[int, ...]]:
    """State-dict name -> shape once only the kept indices are left, for tensors that have any.

    Args:
        tensors: State-dict name -> shape now.
        slices: State-dict name -> {axis: kept indices}.
    """
    after = {}
    for name, axes in slices.items():
        shape = list(tensors[name])
        for axis, kept in axes.items():
            shape[axis] = len(kept)
        after[name] = tuple(shape)
    return after


def apply_plan(model: paddle.nn.Layer, plan: Plan) -> None:
    """Prune a model in place; its parameters keep their names and settings.

    Args:
        model: An unpruned model of the architecture that the plan was made for; the channels that
            remain keep their values.
        plan: What to remove.

    Raises:
        PlanError: The plan was made for another model; the first differences are shown.
    """
    differences = differing(plan.tensors, tensor_shapes(model), "plan", "model")
    if type(model).__name__ != plan.architecture:
        differences.insert(0, f"plan is of {plan.architecture}, model is {type(model).__name__}")
    if differences:
        raise PlanError(f"the plan belongs to another model: {summary(differences)}")
    parameters = dict(model.named_parameters())
    for name in plan.slices:
        set_parameter(parameters[name], plan.slice(name, parameters[name].numpy()))
    names = {id(param): name for name, param in parameters.items()}
    for layer in model.sublayers():
        name = names.get(id(getattr(layer, "weight", None)), "")
        if name in plan.slices:
            _refresh_layer(layer, plan.depthwise.get(name))
    attach_step(model, plan)


def describe_cost(plan: Plan) -> str:
    """One line on the savings of a plan."""
    before, after = plan.cost["before"], plan.cost["after"]
    height, width = plan.image_size_hw
    return (
        f"pruned {len(plan.groups)} groups: MACs at {height}x{width} {before['macs']:.0f} -> "
        f"{after['macs']:.0f} ({after['macs'] / before['macs'] - 1:+.2%}), parameters "
        f"{before['params']:.0f} -> {after['params']:.0f} "
        f"({after['params'] / before['params'] - 1:+.2%})"
    )


def plan_of(model: paddle.nn.Layer) -> Plan | None:
    """The plan of a pruned model; None for an unpruned one."""
    return step_of(model, Plan)


def _lists(slices: dict[str, dict[int, np.ndarray]]) -> dict[str, dict[str, list[int]]]:
    """Kept indices as JSON holds them."""
    return {
        name: {str(axis): kept.tolist() for axis, kept in axes.items()}
        for name, axes in slices.items()
    }


def _check_indices(plan: Plan) -> None:
    for name, axes in plan.slices.items():
        for axis, kept in axes.items():
            size = plan.tensors[name][axis]
            if len(kept) == 0 or kept[0] < 0 or kept[-1] >= size or (np.diff(kept) <= 0).any():
                raise ValueError(f"kept channels of '{name}' on axis {axis} are not valid")


def _refresh_layer(layer: paddle.nn.Layer, depthwise_groups: int | None) -> None:
    """Update the channel counts that a layer stores beside its weight."""
    weight = layer.weight
    if depthwise_groups is not None:
        layer._groups = depthwise_groups
    transposed = "Transpose" in type(layer).__name__
    counts = {"_num_features": weight.shape[0]}
    if hasattr(layer, "_num_groups"):  # group norm, of which whole groups are removed
        size = layer._num_channels // layer._num_groups
        counts = {"_num_channels": weight.shape[0], "_num_groups": weight.shape[0] // size}
    if weight.ndim == 4:
        widths = weight.shape[0], weight.shape[1] * getattr(layer, "_groups", 1)
        out, inside = reversed(widths) if transposed else widths
        counts.update(_out_channels=out, _in_channels=inside)
    elif weight.ndim == 2:
        counts = {"in_features": weight.shape[0], "out_features": weight.shape[1]}
    for attribute, value in counts.items():
        if hasattr(layer, attribute):
            setattr(layer, attribute, int(value))


def _dump(data: dict[str, Any]) -> str:
    """JSON with one line per entry of a table: small files, readable diffs."""
    lines = []
    for key, value in data.items():
        if isinstance(value, dict) and value and key in ("groups", "slices", "tensors"):
            rows = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            lines.append(f"  {json.dumps(key)}: {{\n{rows}\n  }}")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"

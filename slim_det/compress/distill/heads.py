"""Heads that keep, or are given, what a distillation loss compares in a training step."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from paddle import Tensor
from paddle.nn import Layer

from slim_det.compress.distill.taps import Kept, Place
from slim_det.core.errors import ConfigError
from slim_det.graph.dygraph import evaluation_mode


class Heads:
    """The heads of a student and its teacher; the base of one class for each loss.

    Attributes:
        needs_labels: Whether the teacher's head computes its loss, from the student's batch.
        student: The student's head.
        teacher: The teacher's head.
    """

    needs_labels: ClassVar[bool] = False

    def __init__(self, student: Layer, teacher: Layer) -> None:
        self.student, self.teacher = student, teacher

    @property
    def teacher_places(self) -> list[Place]:
        """Places of the teacher that are read."""
        return []

    def attach(self) -> None:
        """Prepare the student's head for the training."""

    def detach(self) -> None:
        """Leave the student's head as it was."""

    def give(self, teacher: Mapping[Place, Kept]) -> Mapping[str, Tensor]:
        """Hand what the teacher gave to the student's head, which has not run yet.

        Args:
            teacher: What the teacher's places gave.

        Returns:
            What the loss reads of the teacher.
        """
        return {}

    def take(self, outputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What the loss reads of the student.

        Args:
            outputs: The losses that the student returned.
        """
        return {}

    def clear(self) -> None:
        """Forget what was given for a step."""

    def own_loss(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The student's loss without what it learns of the teacher."""
        return outputs["loss"]


class PPYOLOEHeads(Heads):
    """Two PP-YOLOE heads: anchors are assigned to objects by the teacher's predictions for both.

    Args:
        student: A detector with a `PPYOLOEHead` that has ``for_distill``.
        teacher: Another one.

    Raises:
        ConfigError: A head is of another kind, or they divide images or distances differently.
    """

    needs_labels = True
    _ASSIGNED = ("assigned_labels", "assigned_bboxes", "assigned_scores", "mask_positive")

    def __init__(self, student: Layer, teacher: Layer) -> None:
        for side, model in (("student", student), ("teacher", teacher)):
            head = getattr(model, "yolo_head", None)
            if not getattr(head, "for_distill", False):
                raise ConfigError(
                    f"Distill: loss 'ppyoloe': the {side}, {type(model).__name__}, has no "
                    "PPYOLOEHead with for_distill; expected architecture: PPYOLOE and "
                    "for_distill: true in its configuration"
                )
        super().__init__(student.yolo_head, teacher.yolo_head)
        _require_equal("ppyoloe", self.student, self.teacher, ("fpn_strides", "reg_channels"))

    def give(self, teacher: Mapping[Place, Kept]) -> Mapping[str, Tensor]:
        """Let the student's head take the teacher's assignment, if there is one."""
        for name in self._ASSIGNED:
            if hasattr(self.teacher, name):
                setattr(self.student, name, getattr(self.teacher, name))
        return self._kept(self.teacher)

    def take(self, outputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """What the head kept of the step."""
        return self._kept(self.student)

    def clear(self) -> None:
        """Forget assignments; a head with an old one would use it for the next images."""
        for head in (self.student, self.teacher):
            for name in self._ASSIGNED:
                if hasattr(head, name):
                    delattr(head, name)
            head.distill_pairs.clear()

    def _kept(self, head: Any) -> dict[str, Tensor]:
        # A step without objects leaves no boxes, and must not find those of the step before.
        kept = dict(head.distill_pairs)
        head.distill_pairs.clear()
        return kept


class LDHeads(Heads):
    """A student's `LDGFLHead` that computes its loss from what a GFL teacher gives.

    Args:
        student: A detector with an `LDGFLHead`.
        teacher: A detector with a `GFLHead` or `LDGFLHead`.

    Raises:
        ConfigError: A head is of another kind, or they divide images or distances differently.
    """

    _LOSSES = ("loss_ld", "loss_ld_vlr", "loss_kd")

    def __init__(self, student: Layer, teacher: Layer) -> None:
        heads: list[Any] = [getattr(model, "head", None) for model in (student, teacher)]
        for side, head, wanted in zip(
            ("student", "teacher"), heads, ("LDGFLHead", "GFLHead or LDGFLHead")
        ):
            if type(head).__name__ not in wanted.split(" or "):
                raise ConfigError(
                    f"Distill: loss 'ld': the {side}'s head is {type(head).__name__}; expected "
                    f"{wanted}"
                )
            if head.dgqp_module:
                raise ConfigError(f"Distill: loss 'ld': the {side}'s head has a dgqp_module")
        super().__init__(*heads)
        _require_equal("ld", self.student, self.teacher, ("fpn_stride", "reg_max"))
        self._given: tuple[list[Any], list[Any]] | None = None
        paths = {id(layer): path for path, layer in teacher.named_sublayers()}
        self._distances = [Place(paths[id(layer)]) for layer in self.teacher.scales_regs]

    @property
    def teacher_places(self) -> list[Place]:
        """Class logits and distances of every scale."""
        scales = len(self._distances)
        classes = [Place("head.gfl_head_cls", item=scale, of=scales) for scale in range(scales)]
        return [*classes, *self._distances]

    def attach(self) -> None:
        """Complete the arguments of the head's loss."""
        compute = type(self.student).get_loss

        def get_loss(outputs: Any, targets: Any) -> Any:
            # Without a teacher the head learns from itself, which costs and teaches nothing.
            soft = self._given or [[x.detach() for x in part] for part in outputs]
            return compute(self.student, outputs, targets, *soft)

        self.student.get_loss = get_loss

    def detach(self) -> None:
        """Leave the head as it was."""
        del self.student.get_loss

    def give(self, teacher: Mapping[Place, Kept]) -> Mapping[str, Tensor]:
        """Keep the teacher's outputs for the student's loss."""
        given = [teacher[place] for place in self.teacher_places]
        self._given = given[: len(given) // 2], given[len(given) // 2 :]
        return {}

    def take(self, outputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The parts that the head has computed."""
        return {name: outputs[name] for name in self._LOSSES}

    def clear(self) -> None:
        """Forget the teacher's outputs."""
        self._given = None

    def own_loss(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """The head has added its parts to the loss already."""
        return outputs["loss"] - sum(self.take(outputs).values())


HEADS: dict[str, type[Heads]] = {"ppyoloe": PPYOLOEHeads, "ld": LDHeads}
"""Loss that reads ``"head"`` -> its heads."""


@contextlib.contextmanager
def labelled_mode(model: Layer) -> Iterator[None]:
    """Let a frozen detector compute the loss of its head, all else as in evaluation."""
    with evaluation_mode(model):
        for layer in (model, model.yolo_head):
            layer.training = True
        yield


def _require_equal(loss: str, student: Layer, teacher: Layer, names: tuple[str, ...]) -> None:
    for name in names:
        ours, theirs = getattr(student, name), getattr(teacher, name)
        if ours != theirs:
            raise ConfigError(
                f"Distill: loss '{loss}': the student's head has {name} {ours} and the teacher's "
                f"{theirs}; expected the same"
            )

"""A term of the settings, tied to the layers of one student and one teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from paddle import Tensor
from paddle.nn import Layer, LayerList

from slim_det.compress.distill.auxiliary_modules import make_adaptor
from slim_det.compress.distill.losses import LOSSES, Loss, Options
from slim_det.compress.distill.settings import Term
from slim_det.compress.distill.taps import Kept, Place, find_layer
from slim_det.core.errors import ConfigError, LayerError
from slim_det.detectors.yolov3_outputs import yolo_outputs


@dataclass(frozen=True)
class BoundTerm:
    """What a distiller computes for one term.

    Attributes:
        key: In the dict of losses: ``distill_<name of the term>``.
        term: Weight and schedule.
        loss: The function and what it reads.
        options: Passed to the function.
        student: Places in the student; several for the raw YOLO outputs, which are summed.
        teacher: The places that they are compared with, in the same order.
        adaptors: One for each place, to bring the student to the teacher's channels; or None.
    """

    key: str
    term: Term
    loss: Loss
    options: Options
    student: tuple[Place, ...]
    teacher: tuple[Place, ...]
    adaptors: LayerList | None = None

    def weight(self, epoch: int) -> float:
        """Weight in an epoch; 0 where the term does not act."""
        return self.term.weight * self.term.schedule.factor(epoch)

    def value(self, student: Mapping[Place, Kept], teacher: Mapping[Place, Kept]) -> Tensor:
        """The loss without its weight, summed over the places.

        Args:
            student: What the student's layers gave.
            teacher: What the teacher's layers gave.

        Raises:
            ConfigError: Shapes do not fit; both layers and shapes are named.
        """
        values = []
        for number, (place, other) in enumerate(zip(self.student, self.teacher)):
            ours = student[place]
            if self.adaptors is not None:
                ours = self.adaptors[number](ours)
            values.append(self._compare(place, ours, other, teacher[other]))
        return sum(values[1:], values[0])

    def mirrored_value(
        self, student: Mapping[Place, Kept], teacher: Mapping[Place, Kept]
    ) -> Tensor:
        """The loss of the peer, with the roles exchanged; the student's tensors are constants."""
        values = [
            self._compare(other, teacher[other], place, _detached(student[place]))
            for place, other in zip(self.student, self.teacher)
        ]
        return sum(values[1:], values[0])

    def with_adaptors(
        self, student: Mapping[Place, Kept], teacher: Mapping[Place, Kept], number: int
    ) -> BoundTerm:
        """The term with adaptors numbered from ``number``, if needed.

        That is where its loss allows them, and only the channels of student and teacher differ.
        """
        if not self.loss.adapts:
            return self
        adaptors: list[Layer] = []
        for place, other in zip(self.student, self.teacher):
            ours, theirs = _shapes(student[place])[-1], _shapes(teacher[other])[-1]
            is_map = len(ours) == len(theirs) == 4
            if not is_map or ours[1] == theirs[1] or ours[2:] != theirs[2:]:
                return self
            adaptors.append(make_adaptor(number + len(adaptors), ours[1], theirs[1]))
        return replace(self, adaptors=LayerList(adaptors))

    def _compare(self, place: Place, learner: Kept, other: Place, target: Kept) -> Tensor:
        try:
            return self.loss.function(learner, target, self.options)
        except ConfigError as error:
            raise ConfigError(
                f"{self.key}: layers '{place.path}' ({_shape(learner)}) and '{other.path}' "
                f"({_shape(target)}) do not fit: {error}"
            ) from error


def bind(term: Term, student: Layer, teacher: Layer, num_classes: int) -> BoundTerm:
    """Find the layers of a term.

    Args:
        term: A term of the settings.
        student: The model that learns.
        teacher: The model that it learns from.
        num_classes: Of both.

    Raises:
        ConfigError: The term is of the raw YOLO outputs, and a model has none, or their numbers
            differ.
        LayerError: A layer is unknown or ambiguous.
    """
    loss = LOSSES[term.loss]
    if term.student is None or term.teacher is None:
        ours, theirs = _outputs(term, student, "student"), _outputs(term, teacher, "teacher")
        if len(ours) != len(theirs):
            raise ConfigError(
                f"Distill: loss '{term.loss}': the student has {len(ours)} raw YOLO outputs and "
                f"the teacher {len(theirs)}; expected equal numbers of scales"
            )
    else:
        ours = [_layer(term, student, term.student, "student")]
        theirs = [_layer(term, teacher, term.teacher, "teacher")]
    return BoundTerm(
        f"distill_{term.name}",
        term,
        loss,
        Options(num_classes, term.temperature),
        tuple(Place(path, loss.reads) for path in ours),
        tuple(Place(path, loss.reads) for path in theirs),
    )


def _layer(term: Term, model: Layer, spelling: str, side: str) -> str:
    try:
        return find_layer(model, spelling)
    except LayerError as error:
        raise LayerError(f"Distill: pair '{term.name}': {side}: {error}") from error


def _outputs(term: Term, model: Layer, side: str) -> list[str]:
    paths = yolo_outputs(model)
    if not paths:
        raise ConfigError(
            f"Distill: loss '{term.loss}' compares raw YOLO outputs and the {side}, "
            f"{type(model).__name__}, has no 'yolo_head.yolo_output.0'; name layers in 'pairs'"
        )
    return paths


def _detached(kept: Kept) -> Kept:
    return kept.detach() if isinstance(kept, Tensor) else (kept[0].detach(), kept[1].detach())


def _shapes(kept: Kept) -> list[list[int]]:
    return [list(tensor.shape) for tensor in ([kept] if isinstance(kept, Tensor) else kept)]


def _shape(kept: Kept) -> str:
    return " -> ".join(map(str, _shapes(kept)))

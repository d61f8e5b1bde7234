"""A term of the settings, tied to the layers of one student and one teacher."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from paddle import Tensor
from paddle.nn import Layer, LayerList

from slim_det.compress.distill.auxiliary_modules import make_adaptor, make_context
from slim_det.compress.distill.loss import Loss, Options
from slim_det.compress.distill.losses import LOSSES
from slim_det.compress.distill.settings import Term
from slim_det.compress.distill.taps import Kept, Place, find_layer
from slim_det.core.errors import ConfigError, LayerError
from slim_det.detectors.yolov3_outputs import yolo_outputs

_ITEM = re.compile(r"(?P<layer>.+)\[(?P<item>\d+)\]")


@dataclass(frozen=True)
class BoundTerm:
    """What a distiller computes for one term.

    Attributes:
        key: In the dict of losses: ``distill_<name of the term>``.
        term: Weight and schedule.
        loss: The function and what it reads.
        options: Passed to the function.
        student: Places in the student, whose values are summed; one for each scale of the raw YOLO
            outputs, or each tensor of a layer.
        teacher: The places that they are compared with, in the same order.
        adaptors: One for each place, to bring the student to the teacher's channels; or None.
        contexts: One for each place, where the loss learns itself; or None.
    """

    key: str
    term: Term
    loss: Loss
    options: Options
    student: tuple[Place, ...]
    teacher: tuple[Place, ...]
    adaptors: LayerList | None = None
    contexts: LayerList | None = None

    @property
    def modules(self) -> dict[str, Layer]:
        """What learns beside the student: name -> layers."""
        found = {self.key: self.adaptors, f"{self.key}_context": self.contexts}
        return {name: layers for name, layers in found.items() if layers is not None}

    def weight(self, epoch: int) -> float:
        """Weight in an epoch; 0 where the term does not act."""
        return self.term.weight * self.term.schedule.factor(epoch)

    def value(
        self,
        student: Mapping[Place, Any],
        teacher: Mapping[Place, Any],
        boxes: Sequence[np.ndarray] = (),
    ) -> Tensor:
        """The loss without its weight, summed over the places.

        Args:
            student: What the student's layers gave.
            teacher: What the teacher's layers gave.
            boxes: See `Options`; for a loss that needs them.

        Raises:
            ConfigError: Shapes do not fit; both layers and shapes are named.
        """
        values = []
        for number, (place, other) in enumerate(zip(self.student, self.teacher)):
            ours = student[place]
            theirs = teacher[other]
            if self.adaptors is not None:
                ours = self.adaptors[number](ours)
            if self.term.normalize:
                ours, theirs = _normalized(ours), _normalized(theirs)
            context = None if self.contexts is None else self.contexts[number]
            options = replace(self.options, boxes=boxes, context=context)
            values.append(self._compare(place, ours, other, theirs, options))
        return sum(values[1:], values[0])

    def mirrored_value(
        self, student: Mapping[Place, Kept], teacher: Mapping[Place, Kept]
    ) -> Tensor:
        """The loss of the peer, with the roles exchanged; the student's tensors are constants."""
        values = [
            self._compare(other, teacher[other], place, _detached(student[place]), self.options)
            for place, other in zip(self.student, self.teacher)
        ]
        return sum(values[1:], values[0])

    def spread(self, student: Mapping[Place, int], teacher: Mapping[Place, int]) -> BoundTerm:
        """The term with a place for each tensor that its layers give.

        Args:
            student: Place -> number of tensors; a place with ``of`` 0 stands for all of them.
            teacher: The same of the teacher.

        Raises:
            ConfigError: The numbers differ, or there is no tensor of a number.
        """
        ours = [place for one in self.student for place in _each(self.key, one, student)]
        theirs = [place for one in self.teacher for place in _each(self.key, one, teacher)]
        if len(ours) != len(theirs):
            raise ConfigError(
                f"{self.key}: layer '{self.student[0].path}' gives {len(ours)} tensors and "
                f"'{self.teacher[0].path}' {len(theirs)}; expected the same number, or one of "
                f"them, as in '{self.student[0].path}[0]'"
            )
        return replace(self, student=tuple(ours), teacher=tuple(theirs))

    def with_modules(
        self, student: Mapping[Place, Kept], teacher: Mapping[Place, Kept], number: int
    ) -> BoundTerm:
        """The term with the modules that it needs, numbered from ``number``.

        Those are adaptors, where its loss allows them and only the channels of student and teacher
        differ, and what the loss learns itself.
        """
        contexts = None
        if self.loss.make_context:
            contexts = LayerList(
                make_context(number + index, self.loss.make_context, _channels(teacher[place]))
                for index, place in enumerate(self.teacher)
            )
        adaptors = self._adaptors(student, teacher, number)
        return replace(self, adaptors=adaptors, contexts=contexts)

    def _adaptors(
        self, student: Mapping[Place, Kept], teacher: Mapping[Place, Kept], number: int
    ) -> LayerList | None:
        if not self.loss.adapts:
            return None
        adaptors: list[Layer] = []
        for place, other in zip(self.student, self.teacher):
            ours, theirs = _shapes(student[place])[-1], _shapes(teacher[other])[-1]
            is_map = len(ours) == len(theirs) == 4
            if not is_map or ours[1] == theirs[1] or ours[2:] != theirs[2:]:
                return None
            adaptors.append(make_adaptor(number + len(adaptors), ours[1], theirs[1]))
        return LayerList(adaptors)

    def _compare(
        self, place: Place, learner: Any, other: Place, target: Any, options: Options
    ) -> Tensor:
        try:
            return self.loss.function(learner, target, options)
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
    options = Options(num_classes, term.temperature, term.factors)
    if loss.reads == "head":
        place = (Place(term.loss, "head"),)
        return BoundTerm(f"distill_{term.name}", term, loss, options, place, place)
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
    return BoundTerm(f"distill_{term.name}", term, loss, options, tuple(ours), tuple(theirs))


def _layer(term: Term, model: Layer, spelling: str, side: str) -> Place:
    """A place from ``LAYER``, or ``LAYER[NUMBER]`` for one of several tensors."""
    match = _ITEM.fullmatch(spelling)
    try:
        path = find_layer(model, match["layer"] if match else spelling)
    except LayerError as error:
        raise LayerError(f"Distill: pair '{term.name}': {side}: {error}") from error
    reads = LOSSES[term.loss].reads
    return Place(path, reads, int(match["item"]), 1) if match else Place(path, reads, of=0)


def _outputs(term: Term, model: Layer, side: str) -> list[Place]:
    paths = yolo_outputs(model)
    if not paths:
        raise ConfigError(
            f"Distill: loss '{term.loss}' compares raw YOLO outputs and the {side}, "
            f"{type(model).__name__}, has no 'yolo_head.yolo_output.0'; name layers in 'pairs'"
        )
    return [Place(path) for path in paths]


def _each(key: str, place: Place, counts: Mapping[Place, int]) -> Iterator[Place]:
    """The places that a place stands for."""
    if place.reads == "head":
        yield place
        return
    count = counts[place]
    if place.of == 0:
        yield from (replace(place, item=item, of=count) for item in range(count))
    elif place.item < count:
        yield replace(place, of=count)
    else:
        raise ConfigError(
            f"{key}: layer '{place.path}' gives {count} tensors, numbered from 0; there is no "
            f"'{place.path}[{place.item}]'"
        )


def _normalized(kept: Kept) -> Kept:
    """A map [N, C, ...] with mean 0 and deviation 1 of every channel."""
    if not isinstance(kept, Tensor) or kept.ndim < 3:
        return kept
    tensor = kept.astype("float32")
    axes = [0, *range(2, tensor.ndim)]
    centred = tensor - tensor.mean(axis=axes, keepdim=True)
    return centred / (tensor.std(axis=axes, keepdim=True) + 1e-6)


def _detached(kept: Kept) -> Kept:
    return kept.detach() if isinstance(kept, Tensor) else (kept[0].detach(), kept[1].detach())


def _channels(kept: Kept) -> int:
    return int(_shapes(kept)[-1][1])


def _shapes(kept: Kept) -> list[list[int]]:
    return [list(tensor.shape) for tensor in ([kept] if isinstance(kept, Tensor) else kept)]


def _shape(kept: Kept) -> str:
    return " -> ".join(map(str, _shapes(kept)))

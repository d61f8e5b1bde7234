"""The distiller: adds terms that compare a student with its teacher to the student's losses.

The student remains the model that the Trainer sees. A distiller is attached by forward hooks and is
no layer, so neither it nor the teacher is in the student's state, optimizer or export.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import paddle
import paddle.distributed as dist
from paddle import Tensor
from paddle.nn import Layer

from slim_det.compress.distill.auxiliary_modules import AuxiliaryModules, make_peer
from slim_det.compress.distill.bound_term import BoundTerm, bind
from slim_det.compress.distill.gradient_norms import dominating, gradient_norms, table
from slim_det.compress.distill.heads import HEADS, Heads, labelled_mode
from slim_det.compress.distill.objects import object_boxes
from slim_det.compress.distill.settings import Term
from slim_det.compress.distill.taps import Place, Taps, count_tensors, dry_run
from slim_det.compress.finite import require_finite, watch_outputs
from slim_det.compress.steps import Step, attach_step, detach_step, step_of
from slim_det.core.errors import ConfigError, TrainingError
from slim_det.detectors.image_size import USUAL_STRIDE

logger = logging.getLogger("slim_det")

# Of the black image on which both models are tried.
_SIZE_HW = (2 * USUAL_STRIDE, 2 * USUAL_STRIDE)


class Distiller(Step):
    """Runs a teacher beside a student, and adds weighted terms to the student's losses.

    As a step it lasts for the training only: its file holds the auxiliary modules, if any.

    In training mode the dict that the student returns gains ``distill_<term>`` for every term,
    with its weight, and ``loss`` becomes the total. A term that does not act in this epoch is 0,
    because ppdet logs the keys of its first step in every step; where none acts, the teacher does
    not run. In evaluation mode, or without gradients, the student is left alone.

    The teacher of a mutual loss is a peer: it learns from its own detection loss and from the same
    terms with the roles exchanged. Its backward pass runs inside the student's forward pass.

    Both models run once on a small black image when a distiller is made. So what does not fit is
    reported before anything is trained or written, and the adaptors exist early enough to be in
    the optimizer and to be resumed.

    Args:
        student: A detector whose forward pass returns a dict with ``loss`` in training.
        teacher_model: A detector of its own; it is frozen, unless a term is mutual.
        terms: What to add.
        num_classes: Of both.
        total_factor: Factor of the total loss.

    Attributes:
        student: The student.
        teacher: The teacher, or the peer.
        terms: The terms with their layers.
        auxiliary_modules: What is trained beside the student; None where there is nothing.
        epoch: Set by `DistillSchedule`; from 0.
        step: Set by `DistillSchedule`; from 0.

    Raises:
        ConfigError: Shapes or numbers of tensors do not fit, or a model lacks the outputs or the
            head that a loss reads.
        LayerError: A layer is unknown, ambiguous, or gives something else than tensors.
        TrainingError: A layer does not run in a forward pass.
    """

    suffix: ClassVar[str] = ".companions.pdparams"
    state: ClassVar[str] = "distilled"
    changes_model: ClassVar[bool] = False

    def __init__(
        self,
        student: Layer,
        teacher_model: Layer,
        terms: Sequence[Term],
        num_classes: int,
        total_factor: float = 1.0,
    ) -> None:
        self.student, self.teacher = student, teacher_model
        self.epoch = self.step = 0
        self.total_factor = total_factor
        self.heads: dict[str, Heads] = {
            term.loss: HEADS[term.loss](student, teacher_model)
            for term in terms
            if term.loss in HEADS
        }
        bound = self._spread([bind(term, student, teacher_model, num_classes) for term in terms])
        read = [place for heads in self.heads.values() for place in heads.teacher_places]
        self._student_taps = Taps(student, _of_layers(p for term in bound for p in term.student))
        self._teacher_taps = Taps(
            teacher_model, _of_layers([*(p for term in bound for p in term.teacher), *read])
        )
        self.terms = self._fitted(bound)
        self._given: tuple[dict[Place, Any], Tensor | None] = {}, None
        self.auxiliary_modules = self._make_auxiliary_modules()
        self._reported: set[str] = set()
        self._handles: list[Any] = []

    def attach(self) -> None:
        """Attach to the student; nothing happens where it is attached already.

        Raises:
            ConfigError: Another distiller is attached.
        """
        other = distiller_of(self.student)
        if other is self:
            return
        if other is not None:
            raise ConfigError(
                "the student has a teacher already; 'slim' may name Distill once, give more "
                "terms in 'pairs'"
            )
        self._student_taps.attach()
        self._teacher_taps.attach()
        self._handles = [
            self.student.register_forward_pre_hook(self._before_forward),
            self.student.register_forward_post_hook(self._after_forward),
            *self._watch_outputs(self.student, "the student's"),
            *self._watch_outputs(self.teacher, "the peer's"),
        ]
        for heads in self.heads.values():
            heads.attach()
        attach_step(self.student, self)

    def detach(self) -> None:
        """Leave the student as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._student_taps.detach()
        self._teacher_taps.detach()
        for heads in self.heads.values():
            heads.detach()
        detach_step(self.student, self)

    @property
    def has_file(self) -> bool:
        """Whether anything is trained beside the student."""
        return self.auxiliary_modules is not None

    def write(self, path: str | Path) -> None:
        """Write the file that `resume` reads."""
        if self.auxiliary_modules is not None:
            paddle.save(self.auxiliary_modules.state_dict(), str(path))

    def resume(self, stem: Path) -> None:
        """Load what was trained beside the student (see `AuxiliaryModules.resume`)."""
        if self.auxiliary_modules is not None:
            self.auxiliary_modules.resume(stem.with_name(stem.name + self.suffix))

    @property
    def forbids_slicing(self) -> str:
        """Terms between inner layers are bound to their width; raw outputs keep theirs."""
        inner = [term.key for term in self.terms if term.loss.of_layers]
        return f"Distill compares inner layers ({inner[0]})" if inner else ""

    @property
    def acting(self) -> list[BoundTerm]:
        """The terms that act in this epoch."""
        return [term for term in self.terms if term.weight(self.epoch) > 0]

    def _spread(self, bound: list[BoundTerm]) -> list[BoundTerm]:
        """The terms with a place for each tensor that their layers give."""
        ours = _of_layers(p for term in bound for p in term.student)
        theirs = _of_layers(p for term in bound for p in term.teacher)
        counts = (
            count_tensors(self.student, ours, _SIZE_HW),
            count_tensors(self.teacher, theirs, _SIZE_HW),
        )
        return [term.spread(*counts) for term in bound]

    def _fitted(self, bound: list[BoundTerm]) -> list[BoundTerm]:
        """The terms with the modules they need, each computed once on a black image."""
        ours, theirs = (
            dry_run(taps, _SIZE_HW) for taps in (self._student_taps, self._teacher_taps)
        )
        fitted: list[BoundTerm] = []
        made = 0
        for term in bound:
            if term.loss.reads != "head":
                term = term.with_modules(ours, theirs, made)
                made += sum(len(layers) for layers in term.modules.values())
                no_objects = [np.zeros((0, 4))]
                with paddle.no_grad():
                    term.value(ours, theirs, no_objects)
            fitted.append(term)
        return fitted

    def _make_auxiliary_modules(self) -> AuxiliaryModules | None:
        """Freeze the teacher, or make it a peer; gather what learns beside the student."""
        modules = {name: made for term in self.terms for name, made in term.modules.items()}
        self.teacher.eval()
        if any(term.loss.is_mutual for term in self.terms):
            return AuxiliaryModules(modules, make_peer(self.teacher))
        for parameter in self.teacher.parameters():
            parameter.stop_gradient = True
        return AuxiliaryModules(modules) if modules else None

    def _watch_outputs(self, model: Layer, whose: str) -> list[Any]:
        def check(path: str, output: Tensor) -> None:
            self._check_finite(output, {f"{whose} '{path}'": output})

        return watch_outputs(model, check)

    def _is_teaching(self) -> bool:
        return self.student.training and paddle.is_grad_enabled()

    def _before_forward(self, student: Layer, inputs: Any) -> None:
        """Run the teacher: some heads learn from what it gave, so it comes first."""
        if self._is_teaching() and self.acting:
            self._given = self._run_teacher(inputs[0], self.acting)
            self._student_taps.open()
        else:
            self._student_taps.close()

    def _after_forward(self, student: Layer, inputs: Any, outputs: Any) -> Any:
        if not self._is_teaching():
            return None
        if not isinstance(outputs, dict) or "loss" not in outputs:
            raise TrainingError(
                f"{type(student).__name__} returned a {type(outputs).__name__} in training; "
                "expected a dict of losses with 'loss'"
            )
        acting, detection = self.acting, outputs["loss"]
        for heads in self.heads.values():
            detection = heads.own_loss({**outputs, "loss": detection})
        values: dict[str, Tensor] = {}
        if acting:
            ours, (theirs, peer_loss) = self._student_taps.take(), self._given
            ours.update({Place(k, "head"): heads.take(outputs) for k, heads in self.heads.items()})
            needs_boxes = any(term.loss.needs_boxes for term in acting)
            boxes = object_boxes(inputs[0]) if needs_boxes else ()
            values = {
                term.key: self._weighted(term, term.value(ours, theirs, boxes)) for term in acting
            }
        total = self.total_factor * sum(values.values(), detection)
        zero = paddle.zeros_like(detection.detach())
        losses = {**outputs, **{term.key: values.get(term.key, zero) for term in self.terms}}
        # The student's own losses first: if its outputs are not finite, no term is.
        self._check_finite(total, {**outputs, **values})
        if acting:
            self._report(detection, values)
            if peer_loss is not None:
                self._teach_peer(peer_loss, ours, theirs, acting)
        for heads in self.heads.values():
            heads.clear()
        self._given = {}, None
        return {**losses, "loss": total}

    def _weighted(self, term: BoundTerm, value: Tensor) -> Tensor:
        return term.weight(self.epoch) * value

    def _run_teacher(
        self, batch: Any, acting: list[BoundTerm]
    ) -> tuple[dict[Place, Any], Tensor | None]:
        """What the teacher's layers give; for a peer that learns now, its own loss too."""
        given: dict[Place, Any]
        if any(term.loss.is_mutual for term in acting):
            self._teacher_taps.open()
            self.teacher.train()
            batch = dict(batch) if isinstance(batch, dict) else batch
            loss = self.teacher(batch)["loss"]
            return self._teacher_taps.take(), loss
        self.teacher.eval()
        with paddle.no_grad():
            if any(heads.needs_labels for heads in self.heads.values()):
                with labelled_mode(self.teacher):
                    self._teacher_taps.open()
                    self.teacher(dict(batch))
                    given = self._teacher_taps.take()
            else:
                given = self._teacher_taps.run(batch)
        for name, heads in self.heads.items():
            given[Place(name, "head")] = heads.give(given)
        return given, None

    def _teach_peer(
        self,
        loss: Tensor,
        ours: Mapping[Place, Any],
        theirs: Mapping[Place, Any],
        acting: list[BoundTerm],
    ) -> None:
        """Give the peer's parameters their gradients; the auxiliary modules' optimizer steps."""
        values = {
            f"the peer's {term.key}": self._weighted(term, term.mirrored_value(ours, theirs))
            for term in acting
            if term.loss.is_mutual
        }
        total = sum(values.values(), loss)
        self._check_finite(total, {**values, "the peer's loss": loss})
        total.backward()

    def _check_finite(self, total: Tensor, parts: dict[str, Tensor]) -> None:
        where = f"epoch {self.epoch}, step {self.step}"
        require_finite(total, parts, where, "a smaller weight or learning rate")

    def _report(self, detection: Tensor, values: dict[str, Tensor]) -> None:
        """Log the norm of the gradient of every term, in the first step in which it acts."""
        if not values.keys() - self._reported:
            return
        self._reported |= values.keys()
        factors = {term.key: term.term.schedule.factor(self.epoch) for term in self.acting}
        terms = {key: (value, factors[key]) for key, value in values.items()}
        learning = [p for p in self.student.parameters() if not p.stop_gradient]
        measured = gradient_norms(detection, terms, learning)
        if dist.get_rank() != 0:
            return
        logger.info(
            "epoch %d, step %d: losses at full weight, and the norm of their gradients with "
            "respect to the student\n%s",
            self.epoch,
            self.step,
            table(measured),
        )
        weights = {term.key: term.term.weight for term in self.terms}
        for term in dominating(measured):
            logger.warning(
                "%s dominates the detection loss: its gradient is %.4g and that of the detection "
                "loss %.4g; lower its weight (%g)",
                term.name,
                term.norm,
                measured[0].norm,
                weights[term.name],
            )


def _of_layers(places: Iterable[Place]) -> list[Place]:
    return [place for place in places if place.reads != "head"]


def distiller_of(model: Layer) -> Distiller | None:
    """The distiller that is attached to a student; None for any other model."""
    return step_of(model, Distiller)

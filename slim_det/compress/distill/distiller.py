"""The distiller: adds terms that compare a student with its teacher to the student's losses.

The student remains the model that the Trainer sees. A distiller is attached by forward hooks and is
no layer, so neither it nor the teacher is in the student's state, optimizer or export.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import paddle
import paddle.distributed as dist
from paddle import Tensor
from paddle.nn import Layer

from slim_det.compress.distill.auxiliary_modules import AuxiliaryModules, make_peer
from slim_det.compress.distill.bound_term import BoundTerm, bind
from slim_det.compress.distill.gradient_norms import dominating, gradient_norms, table
from slim_det.compress.distill.settings import Term
from slim_det.compress.distill.taps import Kept, Place, Taps, dry_run
from slim_det.compress.finite import require_finite, watch_outputs
from slim_det.compress.steps import Step, attach_step, detach_step, step_of
from slim_det.core.errors import ConfigError, TrainingError
from slim_det.detectors.image_size import USUAL_STRIDE
from slim_det.detectors.yolov3_outputs import forward_without_boxes

logger = logging.getLogger("slim_det")


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

    Attributes:
        student: The student.
        teacher: The teacher, or the peer.
        terms: The terms with their layers.
        auxiliary_modules: What is trained beside the student; None where there is nothing.
        epoch: Set by `DistillSchedule`; from 0.
        step: Set by `DistillSchedule`; from 0.

    Raises:
        ConfigError: Shapes do not fit, or a model has no raw YOLO outputs.
        LayerError: A layer is unknown, ambiguous, or does not give one tensor.
        TrainingError: A layer does not run, or runs more than once in a forward pass.
    """

    suffix: ClassVar[str] = ".companions.pdparams"
    state: ClassVar[str] = "distilled"
    changes_model: ClassVar[bool] = False

    def __init__(
        self, student: Layer, teacher_model: Layer, terms: Sequence[Term], num_classes: int
    ) -> None:
        self.student, self.teacher = student, teacher_model
        self.epoch = self.step = 0
        bound = [bind(term, student, teacher_model, num_classes) for term in terms]
        self._student_taps = Taps(student, [p for term in bound for p in term.student])
        self._teacher_taps = Taps(teacher_model, [p for term in bound for p in term.teacher])
        self.terms = self._fitted(bound)
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
        attach_step(self.student, self)

    def detach(self) -> None:
        """Leave the student as it was."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._student_taps.detach()
        self._teacher_taps.detach()
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
        inner = [term.key for term in self.terms if not term.loss.on_yolo_outputs]
        return f"Distill compares inner layers ({inner[0]})" if inner else ""

    @property
    def acting(self) -> list[BoundTerm]:
        """The terms that act in this epoch."""
        return [term for term in self.terms if term.weight(self.epoch) > 0]

    def _fitted(self, bound: list[BoundTerm]) -> list[BoundTerm]:
        """The terms with the adaptors they need, each computed once on a black image."""
        size_hw = (2 * USUAL_STRIDE, 2 * USUAL_STRIDE)
        ours, theirs = dry_run(self._student_taps, size_hw), dry_run(self._teacher_taps, size_hw)
        fitted: list[BoundTerm] = []
        adaptors = 0
        for term in bound:
            term = term.with_adaptors(ours, theirs, adaptors)
            adaptors += len(term.adaptors or ())
            with paddle.no_grad():
                term.value(ours, theirs)
            fitted.append(term)
        return fitted

    def _make_auxiliary_modules(self) -> AuxiliaryModules | None:
        """Freeze the teacher, or make it a peer; gather what learns beside the student."""
        adaptors = {term.key: term.adaptors for term in self.terms if term.adaptors is not None}
        self.teacher.eval()
        if any(term.loss.is_mutual for term in self.terms):
            return AuxiliaryModules(adaptors, make_peer(self.teacher))
        for parameter in self.teacher.parameters():
            parameter.stop_gradient = True
        return AuxiliaryModules(adaptors) if adaptors else None

    def _watch_outputs(self, model: Layer, whose: str) -> list[Any]:
        def check(path: str, output: Tensor) -> None:
            self._check_finite(output, {f"{whose} '{path}'": output})

        return watch_outputs(model, check)

    def _is_teaching(self) -> bool:
        return self.student.training and paddle.is_grad_enabled()

    def _before_forward(self, student: Layer, inputs: Any) -> None:
        if self._is_teaching() and self.acting:
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
        detection, acting = outputs["loss"], self.acting
        values: dict[str, Tensor] = {}
        if acting:
            ours = self._student_taps.take()
            theirs, peer_loss = self._run_teacher(inputs[0], acting)
            values = {term.key: self._weighted(term, term.value(ours, theirs)) for term in acting}
        total = sum(values.values(), detection)
        zero = paddle.zeros_like(detection.detach())
        losses = {**outputs, **{term.key: values.get(term.key, zero) for term in self.terms}}
        # The student's own losses first: if its outputs are not finite, no term is.
        self._check_finite(total, {**outputs, **values})
        if acting:
            self._report(detection, values)
            if peer_loss is not None:
                self._teach_peer(peer_loss, ours, theirs, acting)
        return {**losses, "loss": total}

    def _weighted(self, term: BoundTerm, value: Tensor) -> Tensor:
        return term.weight(self.epoch) * value

    def _run_teacher(
        self, batch: Any, acting: list[BoundTerm]
    ) -> tuple[dict[Place, Kept], Tensor | None]:
        """What the teacher's layers give; for a peer that learns now, its own loss too."""
        self._teacher_taps.open()
        if any(term.loss.is_mutual for term in acting):
            self.teacher.train()
            batch = dict(batch) if isinstance(batch, dict) else batch
            loss = self.teacher(batch)["loss"]
            return self._teacher_taps.take(), loss
        self.teacher.eval()
        with paddle.no_grad():
            forward_without_boxes(self.teacher, batch)
        return self._teacher_taps.take(), None

    def _teach_peer(
        self,
        loss: Tensor,
        ours: dict[Place, Kept],
        theirs: dict[Place, Kept],
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


def distiller_of(model: Layer) -> Distiller | None:
    """The distiller that is attached to a student; None for any other model."""
    return step_of(model, Distiller)

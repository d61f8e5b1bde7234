"""What a distillation loss is, what it is told, and the checks that all losses share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from paddle import Tensor
from paddle.nn import Layer

from slim_det.core.errors import ConfigError


@dataclass(frozen=True)
class Options:
    """What a loss has to know besides the two tensors.

    Attributes:
        num_classes: Classes of the detector, for losses of raw YOLO outputs.
        temperature: T, above 0, for losses that have one.
        factors: Factors of the parts of a loss, by name.
        boxes: For each image its objects, float [objects, 4]: x1, y1, x2 and y2 as shares of the
            image's width and height; for losses that need them.
        context: What a loss learns itself, for losses that do.
    """

    num_classes: int = 0
    temperature: float = 1.0
    factors: Mapping[str, float] = field(default_factory=dict)
    boxes: Sequence[np.ndarray] = ()
    context: Layer | None = None


@dataclass(frozen=True)
class Loss:
    """One line of the table of losses.

    Attributes:
        function: ``(student, teacher, options) -> scalar Tensor``.
        weight: Default factor of the loss in the total.
        temperature: Default temperature; None where the loss has none.
        reads: ``"output"``: the output of a layer; ``"flow"``: the pair of its input and output;
            ``"head"``: what a head keeps of a training step (see `heads`).
        on_yolo_outputs: Whether it compares raw YOLO outputs. The function gets one scale; the
            caller adds up the scales.
        adapts: Whether a 1x1 convolution may bring the student to the teacher's channels.
        is_mutual: Whether the teacher learns too, from the same loss with the roles exchanged.
        needs_boxes: Whether it is told where the objects are.
        factors: Names and default factors of its parts.
        make_context: Channels -> a layer that the loss learns itself; None where it has none.
    """

    function: Callable[..., Tensor]
    weight: float
    temperature: float | None = None
    reads: str = "output"
    on_yolo_outputs: bool = False
    adapts: bool = False
    is_mutual: bool = False
    needs_boxes: bool = False
    factors: Mapping[str, float] = field(default_factory=dict)
    make_context: Callable[[int], Layer] | None = None

    @property
    def of_layers(self) -> bool:
        """Whether it compares layers that the user names."""
        return not self.on_yolo_outputs and self.reads != "head"


def pair(loss: str, student: Tensor, teacher: Tensor, axes: str = "...") -> tuple[Tensor, Tensor]:
    """Both as float32 and of equal shape, the teacher's detached."""
    s = checked(loss, "student", student, axes)
    t = checked(loss, "teacher", teacher, axes).detach()
    if s.shape != t.shape:
        raise ConfigError(
            f"distillation loss '{loss}': student {list(s.shape)} and teacher {list(t.shape)} "
            "must have equal shapes"
        )
    return s, t


def checked(loss: str, side: str, tensor: Tensor, axes: str) -> Tensor:
    """One tensor as float32, if it is one, has the axes and is not empty."""
    if not isinstance(tensor, Tensor):
        raise ConfigError(
            f"distillation loss '{loss}': the {side}'s layer gives a {type(tensor).__name__}; "
            "expected one tensor"
        )
    named = [axis for axis in axes.split(", ") if axis != "..."]
    fits = tensor.ndim >= len(named) if axes.endswith("...") else tensor.ndim == len(named)
    if not fits or 0 in tensor.shape:
        raise ConfigError(
            f"distillation loss '{loss}': the {side}'s tensor {list(tensor.shape)} is not [{axes}] "
            "with at least one element"
        )
    return tensor.astype("float32")


def log_softmax(logits: Tensor, axis: int) -> Tensor:
    """Logarithm of the softmax; on a CPU, Paddle's own takes ten times as long."""
    below_top = logits - logits.detach().max(axis=axis, keepdim=True)
    return below_top - below_top.exp().sum(axis=axis, keepdim=True).log()

"""The proof of a cut: the whole model with the same channels forced to zero gives the same.

Channels are zeroed where they are made, after batch norm: filters, bias, scale and shift of
every removed channel are set to zero. Activations of the declared table keep zero at zero, and
a group whose channels pass one that does not is never cut, so they are zero after it as well.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import paddle

from slim_det.compress.prune.groups import find_groups
from slim_det.compress.prune.plan import Plan, resize_parameter
from slim_det.detectors.yolov3_head import is_class_output
from slim_det.graph.trace import Trace, trace_detector

RELATIVE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Stage:
    """One comparison.

    Attributes:
        name: What was compared.
        max_abs: Largest absolute difference.
        max_relative: The same over the largest absolute value of the whole model's output.
        cosine: Cosine of the angle between both outputs.
        passed: Whether ``max_relative`` is within tolerance.
        ap: AP of the stage, where one was measured.
        note: Context for people.
    """

    name: str
    max_abs: float
    max_relative: float
    cosine: float
    passed: bool
    ap: float | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The stage under its JSON keys."""
        return asdict(self)

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{'pass' if self.passed else 'FAIL'}  {self.name}: max abs {self.max_abs:.2e}, "
            f"relative {self.max_relative:.2e}, cosine {self.cosine:.9f}  {self.note}"
        )


def expand_weights(whole: paddle.nn.Layer, cut: paddle.nn.Layer, plan: Plan) -> None:
    """Give a whole model the weights of a cut one at the kept channels; the rest stays.

    Args:
        whole: Same architecture, not cut; its own values remain at the removed channels.
        cut: Model that the plan was applied to, trained since or not.
        plan: The plan.
    """
    values = {name: param.numpy() for name, param in cut.named_parameters()}
    for name, param in whole.named_parameters():
        value = param.numpy().copy()
        axes = plan.slices.get(name, {})
        index = np.ix_(*[axes.get(axis, np.arange(n)) for axis, n in enumerate(value.shape)])
        value[index] = values[name]
        resize_parameter(param, value)


def zero_removed_channels(whole: paddle.nn.Layer, plan: Plan, trace: Trace) -> None:
    """Force every channel that the plan removes to zero, in a model that is not cut."""
    groups = find_groups(whole, trace)
    parameters = dict(whole.named_parameters())
    for axis in groups.axes:
        kept = plan.slices.get(axis.parameter, {}).get(axis.axis)
        if not axis.makes or kept is None:
            continue
        value = parameters[axis.parameter].numpy().copy()
        removed = np.setdiff1d(np.arange(value.shape[axis.axis]), kept)
        np.moveaxis(value, axis.axis, 0)[removed] = 0.0
        resize_parameter(parameters[axis.parameter], value)


def compare_with_masked(
    cut: paddle.nn.Layer,
    whole: paddle.nn.Layer,
    plan: Plan,
    image_size_hw: tuple[int, int],
    seed: int = 0,
) -> list[Stage]:
    """Compare a cut model with the masked whole one on every output that boxes come from.

    Args:
        cut: The cut model, with its weights.
        whole: A whole model of the same architecture; it receives the cut model's weights at
            the kept channels and zeros for the others.
        plan: The plan that ``cut`` was cut by.
        image_size_hw: Size of the seeded random image.
        seed: For the image.

    Returns:
        One stage for every head output.
    """
    trace = trace_detector(whole, image_size_hw)
    groups = find_groups(whole, trace)
    expand_weights(whole, cut, plan)
    zero_removed_channels(whole, plan, trace)
    # What cannot be cut because boxes are made of it: the outputs of the head.
    heads = [
        member.parameter.rsplit(".", 1)[0]
        for group in groups.groups.values()
        for member in group.members
        if group.reasons and is_class_output(member.parameter)
    ]
    image = np.random.default_rng(seed).normal(size=(1, 3, *image_size_hw)).astype("float32")
    left, right = (_outputs(model, heads, image) for model in (cut, whole))
    return [_stage(name, left[name], right[name]) for name in heads if name in left]


def _outputs(model: paddle.nn.Layer, paths: list[str], image: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs of the named layers for one image; hooks are removed in any case."""
    found: dict[str, np.ndarray] = {}
    layers = dict(model.named_sublayers())
    hooks = [
        layers[path].register_forward_post_hook(
            lambda layer, inputs, output, path=path: found.__setitem__(path, output.numpy())
        )
        for path in paths
    ]
    try:
        model.eval()
        with paddle.no_grad():
            model(
                {
                    "image": paddle.to_tensor(image),
                    "im_shape": paddle.to_tensor([list(image.shape[2:])], dtype="float32"),
                    "scale_factor": paddle.ones([1, 2]),
                }
            )
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _stage(name: str, cut: np.ndarray, whole: np.ndarray) -> Stage:
    left, right = cut.astype(np.float64).ravel(), whole.astype(np.float64).ravel()
    difference = float(np.abs(left - right).max())
    largest = float(np.abs(right).max())
    norms = float(np.linalg.norm(left) * np.linalg.norm(right))
    relative = difference / largest if largest else difference
    return Stage(
        name=name,
        max_abs=difference,
        max_relative=relative,
        cosine=float(left @ right / norms) if norms else float(difference == 0.0),
        passed=bool(relative <= RELATIVE_TOLERANCE and np.isfinite(left).all()),
        note=f"pruned against masked, {list(cut.shape)}",
    )

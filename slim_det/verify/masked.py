"""The proof of a cut: the unpruned model with the same channels at zero gives the same outputs.

Channels are zeroed where they are made, after batch norm: filters, bias, scale and shift of
every removed channel are set to zero. Activations of the declared table keep zero at zero, and
a group whose channels pass one that does not is never cut, so they are zero after it as well.
"""

from __future__ import annotations

import numpy as np
import paddle

from slim_det.compress.prune.groups import find_groups
from slim_det.compress.prune.plan import Plan, resize_parameter
from slim_det.detectors.yolov3_head import is_class_output
from slim_det.evaluate.tensor_agreement import compare_tensors
from slim_det.graph.activations import ActivationRecorder, output_array
from slim_det.graph.dygraph import blank_batch
from slim_det.graph.trace import Trace, trace_detector
from slim_det.verify.stages import Stage

RELATIVE_TOLERANCE = 1e-4


def expand_weights(unpruned: paddle.nn.Layer, cut: paddle.nn.Layer, plan: Plan) -> None:
    """Give an unpruned model the weights of a cut one at the kept channels; the rest stays.

    Args:
        unpruned: Same architecture, not cut; its own values remain at the removed channels.
        cut: Model that the plan was applied to, trained since or not.
        plan: The plan.
    """
    values = {name: param.numpy() for name, param in cut.named_parameters()}
    for name, param in unpruned.named_parameters():
        value = param.numpy().copy()
        axes = plan.slices.get(name, {})
        index = np.ix_(*[axes.get(axis, np.arange(n)) for axis, n in enumerate(value.shape)])
        value[index] = values[name]
        resize_parameter(param, value)


def zero_removed_channels(unpruned: paddle.nn.Layer, plan: Plan, trace: Trace) -> None:
    """Force every channel that the plan removes to zero, in a model that is not cut."""
    groups = find_groups(unpruned, trace)
    parameters = dict(unpruned.named_parameters())
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
    unpruned: paddle.nn.Layer,
    plan: Plan,
    image_size_hw: tuple[int, int],
    seed: int = 0,
) -> list[Stage]:
    """Compare a cut model with the masked unpruned one on every output that boxes come from.

    Args:
        cut: The cut model, with its weights.
        unpruned: A model of the same architecture, not cut; it receives the cut model's weights at
            the kept channels and zeros for the others.
        plan: The plan that ``cut`` was cut by.
        image_size_hw: Size of the seeded random image.
        seed: For the image.

    Returns:
        One stage for every head output.
    """
    trace = trace_detector(unpruned, image_size_hw)
    groups = find_groups(unpruned, trace)
    expand_weights(unpruned, cut, plan)
    zero_removed_channels(unpruned, plan, trace)
    # What cannot be cut because boxes are made of it: the outputs of the head.
    heads = [
        member.parameter.rsplit(".", 1)[0]
        for group in groups.groups.values()
        for member in group.members
        if group.reasons and is_class_output(member.parameter)
    ]
    image = np.random.default_rng(seed).normal(size=(1, 3, *image_size_hw)).astype("float32")
    left, right = (_outputs(model, heads, image) for model in (cut, unpruned))
    return [_stage(name, left[name], right[name]) for name in heads if name in left]


def _outputs(model: paddle.nn.Layer, paths: list[str], image: np.ndarray) -> dict[str, np.ndarray]:
    """Outputs for one image of those of the named layers that run."""
    modules = dict(model.named_sublayers())
    recorder = ActivationRecorder({path: modules[path] for path in paths}, output_array)
    batch = {**blank_batch((image.shape[2], image.shape[3])), "image": paddle.to_tensor(image)}
    model.eval()
    with paddle.no_grad(), recorder.recording() as kept:
        model(batch)
        return {path: calls[-1] for path, calls in kept.items() if calls}


def _stage(name: str, cut: np.ndarray, unpruned: np.ndarray) -> Stage:
    agreement = compare_tensors([cut], [unpruned])
    note = f"pruned against masked, {list(cut.shape)}"
    return Stage(
        name=name,
        max_abs=agreement.max_abs,
        cosine=agreement.cosine,
        passed=agreement.max_relative <= RELATIVE_TOLERANCE,
        note=f"{agreement.fault}; {note}" if agreement.fault else note,
        max_relative=agreement.max_relative,
    )

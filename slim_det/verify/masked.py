"""Verifies a pruned model against the unpruned model with the removed channels masked to zero.

Channels are zeroed where they are produced, after batch norm: filters, bias, scale and shift of
every removed channel are set to zero. They stay zero after activations, because a group that
passes through an activation with f(0) != 0 is never pruned.
"""

from __future__ import annotations

import numpy as np
import paddle

from slim_det.compress.prune.groups import find_groups
from slim_det.compress.prune.plan import Plan
from slim_det.compress.tensors import set_parameter
from slim_det.detectors.yolov3_head import is_class_output
from slim_det.evaluate.tensor_agreement import compare_tensors
from slim_det.graph.activations import ActivationRecorder, output_array
from slim_det.graph.dygraph import blank_batch
from slim_det.graph.trace import Trace, trace_detector
from slim_det.verify.proposals import Proposals
from slim_det.verify.stages import Stage

RELATIVE_TOLERANCE = 1e-4


def expand_weights(unpruned: paddle.nn.Layer, pruned: paddle.nn.Layer, plan: Plan) -> None:
    """Copy the weights of a pruned model to the kept channels of an unpruned one.

    Args:
        unpruned: Unpruned model of the same architecture; its removed channels keep their values.
        pruned: Model that the plan was applied to, fine-tuned or not.
        plan: The plan.
    """
    values = {name: param.numpy() for name, param in pruned.named_parameters()}
    for name, param in unpruned.named_parameters():
        value = param.numpy().copy()
        axes = plan.slices.get(name, {})
        index = np.ix_(*[axes.get(axis, np.arange(n)) for axis, n in enumerate(value.shape)])
        value[index] = values[name]
        set_parameter(param, value)


def zero_removed_channels(unpruned: paddle.nn.Layer, plan: Plan, trace: Trace) -> None:
    """Force the channels that the plan removes to zero in an unpruned model."""
    groups = find_groups(unpruned, trace)
    parameters = dict(unpruned.named_parameters())
    for axis in groups.axes:
        kept = plan.slices.get(axis.parameter, {}).get(axis.axis)
        if not axis.makes or kept is None:
            continue
        value = parameters[axis.parameter].numpy().copy()
        removed = np.setdiff1d(np.arange(value.shape[axis.axis]), kept)
        np.moveaxis(value, axis.axis, 0)[removed] = 0.0
        set_parameter(parameters[axis.parameter], value)


def compare_with_masked(
    pruned: paddle.nn.Layer,
    unpruned: paddle.nn.Layer,
    plan: Plan,
    image_size_hw: tuple[int, int],
    seed: int = 0,
) -> list[Stage]:
    """Compare the head outputs of a pruned model with those of the masked unpruned one.

    Args:
        pruned: The pruned model with its weights.
        unpruned: Unpruned model of the same architecture; receives the pruned model's weights at
            the kept channels and zeros at the others.
        plan: The plan by which ``pruned`` was pruned.
        image_size_hw: Height and width of the random image, in pixels.
        seed: Seed of the image.

    Returns:
        One stage per output layer of the head, which may run once for each scale.
    """
    trace = trace_detector(unpruned, image_size_hw)
    groups = find_groups(unpruned, trace)
    expand_weights(unpruned, pruned, plan)
    zero_removed_channels(unpruned, plan, trace)
    # The outputs of the head: they cannot be pruned, because boxes are decoded from them.
    heads = [
        member.parameter.rsplit(".", 1)[0]
        for group in groups.groups.values()
        for member in group.members
        if group.reasons and is_class_output(member.parameter)
    ]
    image = np.random.default_rng(seed).normal(size=(1, 3, *image_size_hw)).astype("float32")
    proposals = Proposals()
    with proposals.recorded():
        left = head_outputs(pruned, heads, image)
    with proposals.replayed():
        right = head_outputs(unpruned, heads, image)
    return [_stage(name, left[name], right[name]) for name in heads if name in left]


def what_is_compared(plan: Plan) -> str:
    """What `compare_with_masked` compares, in one sentence."""
    compared = (
        "the pruned model is compared with the unpruned architecture that has the same weights at "
        "the channels that are kept and zeros elsewhere"
    )
    if plan.repair is None:
        return compared
    return (
        f"{compared}; these are the repaired weights, so this does not show how near the repaired "
        "model is to the one before the cut"
    )


def head_outputs(
    model: paddle.nn.Layer, paths: list[str], image: np.ndarray
) -> dict[str, list[np.ndarray]]:
    """All outputs of the given layers for one image, without those layers that do not run.

    Args:
        model: A ppdet architecture; it is in evaluation mode afterwards.
        paths: Module paths of layers. Scales that share a layer call it one after the other.
        image: Shape [1, 3, height, width].
    """
    modules = dict(model.named_sublayers())
    recorder = ActivationRecorder({path: modules[path] for path in paths}, output_array)
    batch = {**blank_batch((image.shape[2], image.shape[3])), "image": paddle.to_tensor(image)}
    model.eval()
    with paddle.no_grad(), recorder.recording() as kept:
        model(batch)
        return {path: [*calls] for path, calls in kept.items() if calls}


def _stage(name: str, pruned: list[np.ndarray], unpruned: list[np.ndarray]) -> Stage:
    agreement = compare_tensors(pruned, unpruned)
    note = f"pruned against masked, {', '.join(str([*output.shape]) for output in pruned)}"
    return Stage(
        name=name,
        max_abs=agreement.max_abs,
        cosine=agreement.cosine,
        passed=agreement.max_relative <= RELATIVE_TOLERANCE,
        note=f"{agreement.fault}; {note}" if agreement.fault else note,
        max_relative=agreement.max_relative,
    )

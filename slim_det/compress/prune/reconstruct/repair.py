"""Repairs a pruned model: each layer learns to give its former outputs from its changed inputs.

Layer by layer in the order of execution, the weights are solved for by least squares (He, Zhang,
Sun 2017, arXiv 1707.06168): inputs as the repaired layers before it give them, targets as the
unpruned model gave them, on the output channels that are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from slim_det.compress.prune.plan import Plan
from slim_det.compress.prune.reconstruct.batch_norm import BatchNormStatistics
from slim_det.compress.prune.reconstruct.branch import Limits, branch_of
from slim_det.compress.prune.reconstruct.intercept import intercept_place
from slim_det.compress.prune.reconstruct.layers import LinearLayer
from slim_det.compress.prune.reconstruct.observe import Observed, Sampling, sampled_patches
from slim_det.compress.prune.reconstruct.samples import Samples, SampleSums
from slim_det.compress.prune.reconstruct.sums import Sum, at_positions, wanted_outputs
from slim_det.graph.operators import weight_of
from slim_det.graph.staged_run import StagedRun

HELD_OUT = 5
"""Every fifth image judges whether a repaired layer is better; all of them then repair it."""


@dataclass(frozen=True)
class LayerError:
    """How well a layer gives the outputs of the unpruned model.

    Errors are relative: squared error / squared deviation of the outputs from their means, over
    the sampled positions of all images, with the inputs of the repaired model. In front of a ReLU
    it counts what passes. Outputs that are the same everywhere are compared with their squares,
    and with 1 if they are all zero.

    Attributes:
        weight: Name in the state dict.
        before: Error with the weights of the cut.
        after: Error with the weights that the layer got.
        note: Why it kept the weights of the cut; '' if it was repaired.
    """

    weight: str
    before: float
    after: float
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Values of JSON."""
        return asdict(self)


def repair_layer(
    run: StagedRun,
    layer: LinearLayer,
    plan: Plan,
    observed: Observed,
    sampling: Sampling,
    ridge: float,
    behind: Sum | None = None,
    statistics: BatchNormStatistics | None = None,
) -> LayerError:
    """Solve for the weights of one layer and write them into the program of the cut model.

    Args:
        run: The cut model, every earlier layer repaired.
        layer: The layer; its operators have the same indices as in the unpruned program.
        plan: The cut.
        observed: Targets from the unpruned model; those of this layer are dropped.
        sampling: The positions that were observed.
        ridge: See `solve`.
        behind: The sum that the layer is the last to add to, if any.
        statistics: Also measures the batch norms that run on the way to the layer.
    """
    op = run.program.ops[layer.uses[0]]
    weight = run.program.value(weight_of(op))
    start = layer.rule.matrix(op, weight).astype(np.float64)
    fit, held_out = _samples(
        run, layer, plan, observed, sampling, start, behind, statistics or BatchNormStatistics(())
    )
    place = intercept_place(run.program, layer)
    everything = fit if held_out is None else fit + held_out
    error = everything.error(start)
    before = everything.relative(error)
    if held_out is not None:
        trial, added = fit.solved(start, ridge, place)
        if not held_out.error(trial, added) < held_out.error(start):
            return LayerError(layer.weight, before, before, "it is no better on held-out images")
    solved, added = everything.solved(start, ridge, place)
    left = everything.error(solved, added)
    if not left <= error:
        return LayerError(layer.weight, before, before, "its error does not fall")
    repaired = layer.rule.weight(op, solved, weight.shape).astype(weight.dtype)
    run.program.set_value(weight_of(op), repaired)
    if place is not None:
        run.program.set_value(place.variable, place.moved(run.program, added))
    return LayerError(layer.weight, before, everything.relative(left))


def _samples(
    run: StagedRun,
    layer: LinearLayer,
    plan: Plan,
    observed: Observed,
    sampling: Sampling,
    start: np.ndarray,
    behind: Sum | None,
    statistics: BatchNormStatistics,
) -> tuple[Samples, Samples | None]:
    """The samples of the images to fit and of those held out; None if there are too few."""
    groups, _, columns = start.shape
    kept = _kept_outputs(layer, run, plan)
    targets: Mapping[int, list[np.ndarray]] = {
        use: observed.targets.pop((layer.weight, use)) for use in layer.uses
    }
    totals = observed.totals.pop(layer.weight, [])
    names = layer.inputs(run.program)
    if behind is not None:
        names.append(behind.other)
    sums = SampleSums(), SampleSums()
    norms = statistics.due(run, names)
    names += [norm.input("X") for norm in norms]
    limits = {use: _limits(run, use, groups * columns) for use in layer.uses}
    if None in limits.values():  # targets are followed for all uses of a weight or for none
        limits = dict.fromkeys(limits)
    for image, arrays in enumerate(run.arrays(names)):
        statistics.add(norms, arrays)
        held = image % HELD_OUT == HELD_OUT - 1
        for use, chosen, x in sampled_patches(run, layer, sampling, image, arrays):
            y, own = _of_channels(targets[use][image], kept), limits[use]
            if behind is not None:
                total = _of_channels(totals[image], kept)
                other = at_positions(arrays[behind.other][0], chosen)
                y = wanted_outputs(run.program, behind, total, other, y)
                own = own or behind.limits(run.program, other)
            y = y.reshape(len(y), groups, columns).transpose(1, 0, 2)
            sums[held].add(x, y, None if own is None else own.grouped(groups))
    fit, held_out = (one.result() for one in sums)
    if fit is None:
        raise AssertionError("a run without images")
    return fit, held_out


def _limits(run: StagedRun, use: int, channels: int) -> Limits | None:
    """Limits of an operator's outputs; None if nothing behind it clips."""
    branch = branch_of(run.program, use)
    if branch is None or not branch.clips:
        return None
    return branch.limits(run.program, channels)


def _of_channels(values: np.ndarray, kept: np.ndarray | None) -> np.ndarray:
    return values if kept is None else values[:, kept]


def _kept_outputs(layer: LinearLayer, run: StagedRun, plan: Plan) -> np.ndarray | None:
    """Output channels that the cut keeps; None for all."""
    axes = plan.slices.get(layer.weight, {})
    op = run.program.ops[layer.uses[0]]
    return axes.get(layer.rule.out_axis(op))

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
from slim_det.compress.prune.reconstruct.layers import LinearLayer
from slim_det.compress.prune.reconstruct.least_squares import intercept, solve, squared_error
from slim_det.compress.prune.reconstruct.moments import Moments, MomentSums
from slim_det.compress.prune.reconstruct.observe import Observed, Sampling, sampled_patches
from slim_det.compress.prune.reconstruct.sums import Sum, at_positions, wanted_outputs
from slim_det.graph.linear_rules import Product
from slim_det.graph.op import Op
from slim_det.graph.operators import declared, result_of, weight_of
from slim_det.graph.program import DeployProgram
from slim_det.graph.staged_run import StagedRun

HELD_OUT = 5
"""Every fifth image judges whether a repaired layer is better; all of them then repair it."""

_ROUNDING = 1e-12
"""Deviations of this share of the squares are rounding errors of their difference."""


@dataclass(frozen=True)
class LayerError:
    """How well a layer gives the outputs of the unpruned model.

    Errors are relative: squared error / squared deviation of the outputs from their means, over
    the sampled positions of all images, with the inputs of the repaired model. Outputs that are
    the same everywhere are compared with their squares, and with 1 if they are all zero.

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


@dataclass(frozen=True)
class Place:
    """The parameter that takes the intercept of a layer: added to a bias, taken from a mean."""

    variable: str
    sign: int

    def moved(self, program: DeployProgram, added: np.ndarray) -> np.ndarray:
        """The parameter with intercepts [G, M] of the layer in it."""
        old = program.value(self.variable)
        return (old + self.sign * added.reshape(old.shape)).astype(old.dtype)


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
    fit, held_out = _moments(
        run, layer, plan, observed, sampling, start, behind, statistics or BatchNormStatistics(())
    )
    place = intercept_place(run.program, layer)
    everything = fit if held_out is None else fit + held_out
    error = squared_error(everything, start)
    before = _relative(error, everything)
    if held_out is not None:
        trial, added = _solved(fit, start, ridge, place)
        if not squared_error(held_out, trial, added) < squared_error(held_out, start):
            return LayerError(layer.weight, before, before, "it is no better on held-out images")
    solved, added = _solved(everything, start, ridge, place)
    left = squared_error(everything, solved, added)
    if not left <= error:
        return LayerError(layer.weight, before, before, "its error does not fall")
    repaired = layer.rule.weight(op, solved, weight.shape).astype(weight.dtype)
    run.program.set_value(weight_of(op), repaired)
    if place is not None:
        run.program.set_value(place.variable, place.moved(run.program, added))
    return LayerError(layer.weight, before, _relative(left, everything))


def intercept_place(program: DeployProgram, layer: LinearLayer) -> Place | None:
    """Where a layer has room for an intercept: its bias, or the batch norm that alone reads it.

    None if its uses differ in this, or share the parameter with another layer.
    """
    places = {_place_behind(program, program.ops[use]) for use in layer.uses}
    if len(places) != 1:
        return None
    place = places.pop()
    if place is None or len(program.readers(place.variable)) != len(layer.uses):
        return None
    return place


def _place_behind(program: DeployProgram, op: Op) -> Place | None:
    addition = program.bias_addition(op)
    if addition is not None:
        alone = len(program.readers(result_of(op))) == 1
        if not alone or not _one_number_a_channel(program, op, addition):
            return None
        return Place(program.bias_parameter(op), +1)
    readers = program.readers(result_of(op))
    if len(readers) == 1 and "batch_norm" in readers[0].type:
        return Place(readers[0].input("Mean"), -1)
    return None


def _one_number_a_channel(program: DeployProgram, op: Op, addition: Op) -> bool:
    """Whether what is added to the result of a layer has one number for each of its channels."""
    shape = list(program.block.var(result_of(op)).shape)
    added = list(program.block.var(addition.input("Y")).shape)
    missing, axis = len(shape) - len(added), int(addition.attrs.get("axis", -1))
    first = axis if missing and axis >= 0 else missing
    last = isinstance(declared(op).linear, Product) or op.attrs.get("data_format") == "NHWC"
    channels = len(shape) - 1 if last else 1
    expected = [shape[channels] if i == channels else 1 for i in range(len(shape))]
    return [1] * first + added + [1] * (missing - first) == expected


def _moments(
    run: StagedRun,
    layer: LinearLayer,
    plan: Plan,
    observed: Observed,
    sampling: Sampling,
    start: np.ndarray,
    behind: Sum | None,
    statistics: BatchNormStatistics,
) -> tuple[Moments, Moments | None]:
    """The moments of the images to fit and of those held out; None if there are too few."""
    groups, _, columns = start.shape
    kept = _kept_outputs(layer, run, plan)
    targets: Mapping[int, list[np.ndarray]] = {
        use: observed.targets.pop((layer.weight, use)) for use in layer.uses
    }
    totals = observed.totals.pop(layer.weight, [])
    names = layer.inputs(run.program)
    if behind is not None:
        names.append(behind.other)
    sums = MomentSums(), MomentSums()
    norms = statistics.due(run, names)
    names += [norm.input("X") for norm in norms]
    for image, arrays in enumerate(run.arrays(names)):
        statistics.add(norms, arrays)
        held = image % HELD_OUT == HELD_OUT - 1
        for use, chosen, x in sampled_patches(run, layer, sampling, image, arrays):
            y = _of_channels(targets[use][image], kept)
            if behind is not None:
                total = _of_channels(totals[image], kept)
                other = at_positions(arrays[behind.other][0], chosen)
                y = wanted_outputs(run.program, layer, behind, total, other, y)
            sums[held].add(x, y.reshape(len(y), groups, columns).transpose(1, 0, 2))
    fit, held_out = (one.result() for one in sums)
    if fit is None:
        raise AssertionError("a run without images")
    return fit, held_out


def _of_channels(values: np.ndarray, kept: np.ndarray | None) -> np.ndarray:
    return values if kept is None else values[:, kept]


def _kept_outputs(layer: LinearLayer, run: StagedRun, plan: Plan) -> np.ndarray | None:
    """Output channels that the cut keeps; None for all."""
    axes = plan.slices.get(layer.weight, {})
    op = run.program.ops[layer.uses[0]]
    return axes.get(layer.rule.out_axis(op))


def _solved(
    moments: Moments, start: np.ndarray, ridge: float, place: Place | None
) -> tuple[np.ndarray, np.ndarray]:
    if place is None:
        solved = solve(moments, start, ridge)
        return solved, np.zeros((len(solved), solved.shape[2]))
    solved = solve(moments.centred(), start, ridge)
    return solved, intercept(moments, solved)


def _relative(error: float, moments: Moments) -> float:
    squares = float(moments.yy.sum())
    spread = moments.squared_deviation()
    if spread <= _ROUNDING * squares:
        spread = squares  # outputs that do not differ are compared with their size
    if spread > 0.0:
        return error / spread
    return float(error > 0.0)

"""Candidates: which groups are cut by how much, and the masks that do it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import paddle

from slim_det.compress.prune.groups import Group, ModelGroups
from slim_det.compress.prune.importance import least_important, unit_scores
from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.prune.requests import select_groups
from slim_det.core.errors import LayerError
from slim_det.detectors.layer_finder import LayerFinder
from slim_det.detectors.yolov3_head import YOLO_HEAD_LAYERS, has_yolo_head
from slim_det.graph.cost import macs_by_parameter
from slim_det.graph.operators import weight_of
from slim_det.graph.trace import Trace
from slim_det.planning.sensitivity.cuts import Cut, Target, mask_name, mask_value

logger = logging.getLogger("slim_det")


def choose_groups(
    model: paddle.nn.Layer, groups: ModelGroups, params: Sequence[str] | None
) -> list[str]:
    """Names of the groups to analyse, in execution order.

    Args:
        model: The model whose layers are named.
        groups: Its channel groups.
        params: Layer names in any spelling, globs, `yolo_head` or `all`; by default the 18
            layers of a YOLOv3 head, or every group that can be cut if there is none.

    Raises:
        LayerError: A name is unknown, or its layer cannot be cut.
    """
    if params is None:
        params = ["yolo_head" if has_yolo_head(groups.groups) else "all"]
    spellings = [n for p in params for n in (YOLO_HEAD_LAYERS if p == "yolo_head" else (p,))]
    return list(select_groups([(s, 0.5) for s in spellings], LayerFinder(model), groups))


def make_targets(
    model: paddle.nn.Layer,
    trace: Trace,
    groups: ModelGroups,
    names: Sequence[str],
    ratios: Sequence[float],
    pruner: Pruner,
) -> list[Target]:
    """Every cut of the named groups exactly as the pruner would make it, each group alone.

    Only criterion, seed and alignment of the pruner count, not the layers that it names.
    """
    return [_target(model, trace, groups, groups.groups[n], ratios, pruner) for n in names]


def _target(
    model: paddle.nn.Layer,
    trace: Trace,
    groups: ModelGroups,
    group: Group,
    ratios: Sequence[float],
    pruner: Pruner,
) -> Target:
    parameters = dict(model.named_parameters())
    variables = {name: variable for variable, name in trace.parameters.items()}
    reading = groups.axes_reading(group.units)
    if not reading:
        raise LayerError(f"'{group.name}': no layer reads its channels, so a cut changes nothing")
    repeats = _convolution_groups(trace)
    rng = np.random.default_rng(pruner.seed)
    scores = unit_scores(pruner.criterion, group, parameters, rng)
    cuts = []
    for ratio in ratios:
        removed = group.units[least_important(group, scores, ratio, pruner.align)]
        masks = {}
        for axis in reading if len(removed) else ():
            variable, keep = variables[axis.parameter], ~np.isin(axis.ids, removed)
            ndim = parameters[axis.parameter].ndim
            masks[mask_name(variable)] = mask_value(keep, ndim, repeats.get(variable, 1))
        if not masks:
            logger.warning("%s: ratio %g removes no channel: its loss is 0", group.name, ratio)
        cuts.append(Cut(group.name, ratio, masks))
    readers = tuple(dict.fromkeys(variables[axis.parameter] for axis in reading))
    macs = _macs_downstream(trace, readers)
    return Target(group.name, group.channels, readers, macs, tuple(cuts))


def _convolution_groups(trace: Trace) -> dict[str, int]:
    """Weight variable -> groups of its convolution."""
    weights = ((op, weight_of(op)) for op in trace.ops)
    return {weight: int(op.attrs.get("groups") or 1) for op, weight in weights if weight}


def _macs_downstream(trace: Trace, readers: tuple[str, ...]) -> int:
    """MACs of the readers and of all that follows them."""
    macs = macs_by_parameter(trace)
    read = {name for op in trace.downstream(readers) for name in op.input_arg_names}
    return sum(macs.get(name, 0) for name in {trace.parameters.get(name, "") for name in read})

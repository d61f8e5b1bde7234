"""Cuts a model, or several copies of it: channels chosen, removed, and the layers repaired.

What the unpruned model computes on images is computed once for all copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import paddle

from slim_det.compress.prune.compose import apply_composed
from slim_det.compress.prune.groups import Group, ModelGroups
from slim_det.compress.prune.importance import UnitScores
from slim_det.compress.prune.plan import Plan
from slim_det.compress.prune.ratios import units_removed
from slim_det.compress.prune.reconstruct.elimination import ELIMINATION
from slim_det.compress.prune.reconstruct.reconstruction import Reconstruction, reconstruction_of
from slim_det.compress.prune.reconstruct.settings import Calibration
from slim_det.compress.prune.taylor import TAYLOR, taylor_scores
from slim_det.graph.dygraph import evaluation_mode
from slim_det.graph.trace import Trace

Ratios = Mapping[str, float]
"""Group name -> share of its units to remove, in the order of the groups."""


class Planner(Protocol):
    """What a cut needs of a `slim_det.compress.prune.pruner.Pruner`."""

    criterion: str
    repair: str | None
    calibration: Calibration
    align: int
    seed: int

    def plan(
        self,
        model: paddle.nn.Layer,
        trace: Trace,
        groups: ModelGroups,
        ratios: dict[str, float] | None = None,
        scores: UnitScores | None = None,
    ) -> Plan:
        """Choose what to remove; nothing is changed."""


def cut_copies(
    pruner: Planner,
    model: paddle.nn.Layer,
    trace: Trace,
    groups: ModelGroups,
    cuts: Sequence[Ratios],
    copy: Callable[[], paddle.nn.Layer],
    cfg: Any = None,
) -> Iterator[paddle.nn.Layer]:
    """Prune one copy of a model by each set of ratios, and repair it if the pruner does.

    Args:
        pruner: Criterion, alignment and repair; the layers that it names do not count.
        model: The model; it is not changed unless ``copy`` gives the model itself.
        trace: Its operators.
        groups: Its channel groups.
        cuts: The sets of ratios.
        copy: Makes another model, with equal weights and names of parameters; for a single cut it
            may give the model itself.
        cfg: ppdet's configuration, whose readers prepare the images; needed only if images are.

    Yields:
        The copies, in the order of ``cuts``.

    Raises:
        DataError: There are no images.
        LayerError: A layer cannot be pruned.
        PlanError: Nothing was removed, or a pruned model does not cost what its plan says.
    """
    named = {name for ratios in cuts for name in ratios}
    names = [name for name in groups.groups if name in named]
    chooses, repairs = pruner.criterion == ELIMINATION, pruner.repair is not None
    scores: UnitScores | None = None
    if pruner.criterion == TAYLOR:
        scores = taylor_scores(model, groups, names, cfg, pruner.calibration, pruner.seed)
    if not chooses and not repairs:
        for ratios in cuts:
            other = copy()
            apply_composed(other, pruner.plan(model, trace, groups, dict(ratios), scores))
            yield other
        return
    images = reconstruction_of(model, trace, groups, cfg, pruner.calibration, pruner.seed)
    with images as reconstruction:
        reconstruction.observe(names, chooses, repairs, [list(ratios) for ratios in cuts])
        counts = {name: _largest(groups.groups[name], pruner, name, cuts) for name in names}
        scores = _scores(reconstruction, groups, counts) if chooses else scores
        for number, ratios in enumerate(cuts):
            plan = pruner.plan(model, trace, groups, dict(ratios), scores)
            other = copy()
            with evaluation_mode(other):
                applied = apply_composed(other, plan)
                if repairs:
                    applied.repair = reconstruction.repair(other, plan, number).as_dict()
            yield other


def _largest(group: Group, pruner: Planner, name: str, cuts: Sequence[Ratios]) -> int:
    """The largest number of units that any cut removes from a group."""
    ratios = (cut[name] for cut in cuts if name in cut)
    return max(units_removed(len(group.units), ratio, pruner.align) for ratio in ratios)


def _scores(
    reconstruction: Reconstruction, groups: ModelGroups, counts: Mapping[str, int]
) -> UnitScores:
    """One elimination for each group: its order for fewer units is the beginning of that for more.

    Args:
        reconstruction: Has observed the groups.
        groups: The channel groups.
        counts: Group name -> units to order, in the order in which they were observed.
    """
    found: dict[str, np.ndarray] = {
        name: reconstruction.scores(groups.groups[name], count)
        for name, count in counts.items()
        if count
    }
    return lambda group, count: found[group.name]

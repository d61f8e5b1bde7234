"""Pruner: from names and ratios to a plan, and the cut model."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import paddle

from slim_det.compress.prune.groups import Group, ModelGroups, find_groups
from slim_det.compress.prune.importance import CRITERIA, smallest
from slim_det.compress.prune.plan import Plan, apply_plan, tensor_shapes
from slim_det.compress.prune.ratios import units_removed
from slim_det.compress.prune.requests import read_requests, select_groups
from slim_det.compress.strategy import Context, Strategy
from slim_det.core.errors import ConfigError, LayerError, PlanError, nearest
from slim_det.detectors.layer_finder import LayerFinder
from slim_det.graph.channels import Producer
from slim_det.graph.cost import model_cost
from slim_det.graph.trace import Trace, trace_detector

logger = logging.getLogger("slim_det")


class Pruner(Strategy):
    """Cuts the least important channels of named layers out of a detector.

    Args:
        criterion: A name in `slim_det.compress.prune.importance.CRITERIA`: `l1_norm`, `l2_norm`,
            `fpgm`, `bn_scale` or `random`.
        pruned_params: Layer names in any spelling, globs, `yolo_head` (the 18 layers of a
            YOLOv3 head) or `all` (every group that can be cut, the default). Left out where
            ``pruned_ratios`` names the layers itself.
        pruned_ratios: Share of the output channels to remove, each between 0 and 1: one
            number for all, a list as long as ``pruned_params``, a mapping of names to
            numbers, or the name of a preset (`r578`, `sensity`).
        align: What remains of a layer is rounded to a multiple of this.
        seed: For the criterion `random`.
        print_params: Log the name and shape of every parameter first.

    Raises:
        ConfigError: A value is not one of the above.
    """

    step = Plan

    def __init__(
        self,
        criterion: str = "l1_norm",
        pruned_params: Any = None,
        pruned_ratios: Any = None,
        align: int = 1,
        seed: int = 0,
        print_params: bool = False,
    ) -> None:
        if not isinstance(criterion, str) or criterion not in CRITERIA:
            raise ConfigError(
                f"Pruner.criterion: unknown criterion {criterion!r}"
                f"{nearest(str(criterion), CRITERIA)}"
            )
        for key, value, least in (("align", align, 1), ("seed", seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ConfigError(
                    f"Pruner.{key}: {value!r} is not valid; expected a whole number >= {least}"
                )
        self.criterion = criterion
        self.align = align
        self.seed = seed
        self.print_params = print_params
        self.requests = read_requests(pruned_params, pruned_ratios)

    def __call__(self, model: paddle.nn.Layer, context: Context) -> paddle.nn.Layer:
        """Cut the model in place and attach the plan to it.

        Args:
            model: A ppdet detector, with the weights that importance is measured on.
            context: Its image size is the one at which MACs are stated.

        Raises:
            LayerError: A name is unknown or its layer cannot be cut.
            PlanError: Nothing was cut, or the cut model does not cost what the plan says.
        """
        if self.print_params:
            for name, shape in tensor_shapes(model).items():
                logger.info("parameter %s, shape %s", name, list(shape))
        trace = trace_detector(model, context.image_size_hw)
        return self.cut(model, trace, find_groups(model, trace))

    def cut(self, model: paddle.nn.Layer, trace: Trace, groups: ModelGroups) -> paddle.nn.Layer:
        """Cut a traced model in place and attach the plan to it.

        The cut model is traced again: it has to cost what the plan says.

        Args:
            model: With the weights that importance is measured on.
            trace: Its operators at the image size at which MACs are stated.
            groups: Its channel groups.

        Raises:
            LayerError: A name is unknown or its layer cannot be cut.
            PlanError: Nothing was cut, or the cut model does not cost what the plan says.
        """
        plan = self.plan(model, trace, groups)
        apply_plan(model, plan)
        reached = model_cost(model, trace_detector(model, plan.image_size_hw))
        if reached.as_dict() != plan.cost["after"]:
            raise PlanError(
                f"the cut model costs {reached.as_dict()}, the plan says {plan.cost['after']}; "
                "the model's code holds channel numbers that cannot be followed"
            )
        logger.info("%s", describe_cost(plan))
        return model

    @classmethod
    def restore(cls, model: paddle.nn.Layer, step: Plan) -> None:
        """Cut a freshly built model as a plan says."""
        apply_plan(model, step)

    def adopt(self, model: paddle.nn.Layer, step: Plan, context: Context) -> None:
        """Refuse settings that contradict the plan beside the weights.

        Raises:
            PlanError: The weights were cut in another way.
        """
        done = step.settings
        same = self.criterion == done["criterion"] and self.align == done["align"]
        if not same or self._unpruned_ratios(context) != done["ratios"]:
            raise PlanError(
                f"'{context.weights}' was already cut, with {done['criterion']}, in another way "
                f"than {context.asked_by} asks for; leave --slim_config out, or start from "
                "unpruned weights"
            )
        logger.info(
            "'%s' is already cut as %s asks; its plan is used", context.weights, context.asked_by
        )

    def _unpruned_ratios(self, context: Context) -> dict[str, float]:
        """The ratio of each group that would be cut in the unpruned model."""
        model = context.build_detector()
        groups = find_groups(model, trace_detector(model, context.image_size_hw))
        return select_groups(self.requests, LayerFinder(model), groups)

    def plan(self, model: paddle.nn.Layer, trace: Trace, groups: ModelGroups) -> Plan:
        """Decide what to cut; nothing is changed.

        Args:
            model: The model whose weights are scored.
            trace: Its operators at the image size of the costs.
            groups: Its channel groups.
        """
        ratios = select_groups(self.requests, LayerFinder(model), groups)
        rng = np.random.default_rng(self.seed)
        parameters = dict(model.named_parameters())
        removed, kept_units = [], {}
        for name, ratio in ratios.items():
            group = groups.groups[name]
            cut = np.zeros(0, np.int64)
            if units_removed(len(group.units), ratio, self.align):
                scores = self.unit_scores(group, parameters, rng)
                cut = least_important(group, scores, ratio, self.align)
            if len(cut) == 0:
                logger.warning(
                    "%s: ratio %g of %d channels removes none", name, ratio, group.channels
                )
                continue
            removed.append(group.units[cut])
            kept = np.setdiff1d(np.arange(len(group.units)), cut)
            kept_units[name] = {"channels": group.channels, "kept": kept.tolist()}
        if not removed:
            raise PlanError(
                "nothing to prune: every ratio removes less than one channel; "
                "expected larger ratios or wider layers"
            )
        slices = slices_without(groups, np.concatenate(removed))
        plan = Plan(
            architecture=type(model).__name__,
            tensors=tensor_shapes(model),
            image_size_hw=trace.image_size_hw or (0, 0),
            settings={
                "criterion": self.criterion,
                "ratios": ratios,
                "align": self.align,
                "seed": self.seed,
            },
            cost={},
            groups=kept_units,
            slices=slices,
        )
        after = plan.shapes_after()
        plan.depthwise = {
            name: after[name][0] // multiplier
            for name, multiplier in groups.depthwise.items()
            if name in after
        }
        plan.cost = {
            "before": model_cost(model, trace).as_dict(),
            "after": model_cost(model, trace, after).as_dict(),
        }
        return plan

    def unit_scores(
        self, group: Group, parameters: dict[str, paddle.Tensor], rng: np.random.Generator
    ) -> np.ndarray:
        """One score a unit: of the first member, and of later ones for what it does not make.

        Args:
            group: The group to score.
            parameters: State-dict name -> parameter of the model.
            rng: For the criterion `random`.

        Returns:
            float64 [U]; the least important units have the smallest scores.

        Raises:
            LayerError: The criterion does not fit a weight, or weights are not finite.
        """
        scores = np.full(len(group.units), np.nan)
        order = np.argsort(group.units)
        for member in group.members:
            places = order[np.searchsorted(group.units, member.ids, sorter=order)]
            total = np.zeros(len(group.units))
            np.add.at(total, places, self._channel_scores(member, parameters, rng))
            missing = np.isnan(scores) & np.isin(np.arange(len(scores)), places)
            scores[missing] = total[missing]
            if not np.isnan(scores).any():
                break
        return scores

    def _channel_scores(
        self, member: Producer, parameters: dict[str, paddle.Tensor], rng: np.random.Generator
    ) -> np.ndarray:
        weight = parameters[member.parameter].numpy().astype(np.float64)
        filters = np.moveaxis(weight, member.axis, 0).reshape(len(member.ids), -1)
        scale = None
        if member.batch_norm:
            scale = parameters[member.batch_norm].numpy().astype(np.float64)
        try:
            scores = CRITERIA[self.criterion](filters, scale, rng)
        except ValueError as error:
            raise LayerError(f"'{member.parameter}': {error}; choose another criterion") from error
        if not np.isfinite(scores).all():
            raise LayerError(f"'{member.parameter}' holds weights that are not finite")
        return scores


def describe_cost(plan: Plan) -> str:
    """One line on what a plan saves."""
    before, after = plan.cost["before"], plan.cost["after"]
    height, width = plan.image_size_hw
    return (
        f"pruned {len(plan.groups)} groups: MACs at {height}x{width} {before['macs']:.0f} -> "
        f"{after['macs']:.0f} ({after['macs'] / before['macs'] - 1:+.2%}), parameters "
        f"{before['params']:.0f} -> {after['params']:.0f} "
        f"({after['params'] / before['params'] - 1:+.2%})"
    )


def least_important(group: Group, scores: np.ndarray, ratio: float, align: int = 1) -> np.ndarray:
    """Places of the units to cut; each member keeps one, though it may hold only some.

    Args:
        group: The group to cut.
        scores: One score a unit, [U].
        ratio: Share of the units to remove.
        align: What remains is rounded to a multiple of this.
    """
    count = units_removed(len(group.units), ratio, align)
    members = np.array([np.isin(group.units, member.ids) for member in group.members])
    return smallest(scores, count, members)


def slices_without(groups: ModelGroups, removed: np.ndarray) -> dict[str, dict[int, np.ndarray]]:
    """What remains of every parameter axis.

    Args:
        groups: All channel groups of a model.
        removed: Identities of the units that are cut.

    Returns:
        Parameter name -> axis -> places kept; axes that are not cut are left out.
    """
    slices: dict[str, dict[int, np.ndarray]] = {}
    for axis in groups.axes:
        keep = ~np.isin(axis.ids, removed)
        if not keep.all():
            slices.setdefault(axis.parameter, {})[axis.axis] = np.flatnonzero(keep)
    return slices

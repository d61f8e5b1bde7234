"""The pruner: from names and ratios to a plan and the pruned model."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import paddle

from slim_det.compress.prune.compose import compose, groups_left, history
from slim_det.compress.prune.groups import Group, ModelGroups, find_groups, slices_without
from slim_det.compress.prune.importance import CRITERIA, smallest
from slim_det.compress.prune.iterative import IterativePruning
from slim_det.compress.prune.plan import Plan, apply_plan, plan_of
from slim_det.compress.prune.ratios import units_removed
from slim_det.compress.prune.requests import read_requests, select_groups
from slim_det.compress.prune.schedule import read_schedule
from slim_det.compress.prune.stepwise import check_epochs, check_rest, divided, record_step
from slim_det.compress.steps import attach_step
from slim_det.compress.strategy import Context, Strategy
from slim_det.compress.tensors import tensor_shapes
from slim_det.core.errors import ConfigError, LayerError, PlanError, nearest
from slim_det.core.schema import whole_number
from slim_det.detectors.layer_finder import LayerFinder
from slim_det.graph.channels import Producer
from slim_det.graph.cost import model_cost
from slim_det.graph.trace import Trace, trace_detector

logger = logging.getLogger("slim_det")


class Pruner(Strategy):
    """Removes the least important channels of named layers from a detector.

    Args:
        criterion: A name in `slim_det.compress.prune.importance.CRITERIA`: `l1_norm`, `l2_norm`,
            `fpgm`, `bn_scale` or `random`.
        pruned_params: Layer names in any spelling, globs, `yolo_head` (the 18 layers of a
            YOLOv3 head) or `all` (every group that can be pruned, the default). Not given if
            ``pruned_ratios`` names the layers itself.
        pruned_ratios: Share of the output channels to remove, each between 0 and 1: one
            number for all, a list as long as ``pruned_params``, a mapping of names to
            numbers, or the name of a preset (`r578`, `sensity`).
        align: The remaining channels of a layer are rounded to a multiple of this.
        seed: For the criterion `random`.
        print_params: Log the name and shape of every parameter first.
        again: Prune weights that are pruned already once more; ratios are then shares of the
            channels that are left.
        schedule: Reach the ratios in steps with training after each: ``{steps: 3, epochs: 10}`` or
            ``{macs_per_step: 0.07, epochs: 10}``, with ``restart_lr`` or without (see
            `slim_det.compress.prune.schedule`). Only a training has steps; other commands prune by
            the complete ratios.

    Raises:
        ConfigError: A value is not valid.
    """

    step = Plan
    hooks = (IterativePruning,)

    def __init__(
        self,
        criterion: str = "l1_norm",
        pruned_params: Any = None,
        pruned_ratios: Any = None,
        align: int = 1,
        seed: int = 0,
        print_params: bool = False,
        again: bool = False,
        schedule: Any = None,
    ) -> None:
        if not isinstance(criterion, str) or criterion not in CRITERIA:
            raise ConfigError(
                f"Pruner.criterion: unknown criterion {criterion!r}"
                f"{nearest(str(criterion), CRITERIA)}"
            )
        self.criterion = criterion
        self.align = whole_number("Pruner.align", align, 1)
        self.seed = whole_number("Pruner.seed", seed, 0)
        self.print_params = print_params
        if not isinstance(again, bool):
            raise ConfigError(f"Pruner.again: {again!r} is not valid; expected true or false")
        self.again = again
        self.schedule = read_schedule(schedule)
        self.requests = read_requests(pruned_params, pruned_ratios)

    def __call__(self, model: paddle.nn.Layer, context: Context) -> paddle.nn.Layer:
        """Prune the model in place and attach the plan to it (see `cut`).

        Args:
            model: A ppdet detector, with the weights that importance is measured on.
            context: MACs are given at its image size.
        """
        if self.print_params:
            for name, shape in tensor_shapes(model).items():
                logger.info("parameter %s, shape %s", name, list(shape))
        trace = trace_detector(model, context.image_size_hw)
        return self._cut_for(context, model, trace, find_groups(model, trace))

    def cut(
        self,
        model: paddle.nn.Layer,
        trace: Trace,
        groups: ModelGroups,
        ratios: dict[str, float] | None = None,
    ) -> paddle.nn.Layer:
        """Prune a traced model in place and attach the plan to it.

        The arguments are those of `plan`. If the model has a plan already, both become one.

        Raises:
            LayerError: A name is unknown or its layer cannot be pruned.
            PlanError: Nothing was removed, or the pruned model does not cost what the plan says.
        """
        earlier = plan_of(model)
        plan = self.plan(model, trace, groups, ratios)
        apply_plan(model, plan)
        reached = model_cost(model, trace_detector(model, plan.image_size_hw)).as_dict()
        if reached != plan.cost["after"]:
            raise PlanError(
                f"the cut model costs {reached}, the plan says {plan.cost['after']}; "
                "the model's code holds channel numbers that cannot be followed"
            )
        if earlier is not None:
            plan = compose(earlier, plan)
            attach_step(model, plan)
        logger.info("%s", describe_cost(plan))
        return model

    def _cut_for(
        self, context: Context, model: paddle.nn.Layer, trace: Trace, groups: ModelGroups
    ) -> paddle.nn.Layer:
        """Prune by the ratios, or by the first step of the schedule if training follows."""
        if self.schedule is None or not context.is_training:
            return self.cut(model, trace, groups)
        if context.purpose == "resume":
            raise ConfigError(
                f"'{context.weights}' has had no step of the schedule that {context.asked_by} asks "
                f"for; expected -o pretrain_weights={context.weights} instead of -r"
            )
        ratios = select_groups(self.requests, LayerFinder(model), groups)
        steps = divided(self.schedule, ratios, self.align, model, trace, groups)
        check_epochs(steps, context.cfg)
        earlier, settings = plan_of(model), self._settings(ratios)
        if earlier is not None:
            settings["earlier"] = history(earlier.settings)
        self.cut(model, trace, groups, steps.next_ratios(groups))
        record_step(model, steps, settings)
        return model

    @classmethod
    def advance(cls, model: paddle.nn.Layer, step: Plan, context: Context) -> None:
        """Prune by the next step of the plan's schedule, by the weights as they are now."""
        steps, done, size = step.steps, step.settings, step.image_size_hw
        if steps is None or steps.is_complete:
            return
        unpruned = context.build_detector()
        groups = groups_left(find_groups(unpruned, trace_detector(unpruned, size)), step)
        pruner = cls(
            done["criterion"], pruned_ratios=done["ratios"], align=done["align"], seed=done["seed"]
        )
        pruner.cut(model, trace_detector(model, size), groups, steps.next_ratios(groups))
        record_step(model, steps, done)

    @classmethod
    def restore(cls, model: paddle.nn.Layer, step: Plan) -> None:
        """Prune a freshly built model according to a plan."""
        apply_plan(model, step)

    def adopt(self, model: paddle.nn.Layer, step: Plan, context: Context) -> None:
        """Refuse settings that contradict the plan beside the weights, or prune them again.

        With ``again``, a new training prunes them in any case. Any other use leaves weights as they
        are if this pruner made the last cut, such as those of a training that is resumed.

        Raises:
            ConfigError: Weights to resume have not had the requested cut.
            PlanError: The weights were pruned with other settings.
        """
        unpruned = context.build_detector()
        groups = find_groups(unpruned, trace_detector(unpruned, context.image_size_hw))
        asked = self._settings(select_groups(self.requests, LayerFinder(unpruned), groups))
        done = {key: step.settings.get(key) for key in asked}
        is_done = {**done, "seed": self.seed} == asked
        weights, asked_by = context.weights, context.asked_by
        if self.again and (context.purpose == "train" or not is_done):
            if context.purpose == "resume":
                raise ConfigError(
                    f"'{weights}' was not cut again as {asked_by} asks, so it cannot be resumed; "
                    f"expected -o pretrain_weights={weights} instead of -r"
                )
            self.check_weights(model, context)
            trace = trace_detector(model, step.image_size_hw)
            self._cut_for(context, model, trace, groups_left(groups, step))
            return
        if not is_done:
            raise PlanError(
                f"'{weights}' was already cut, with {step.settings['criterion']}, in another way "
                f"than {asked_by} asks for; leave --slim_config out, start from unpruned weights, "
                "or set Pruner.again: true to cut what is left"
            )
        check_rest(step, self.schedule, context)
        logger.info("'%s' is already cut as %s asks; its plan is used", weights, asked_by)

    def _settings(self, ratios: dict[str, float]) -> dict[str, Any]:
        """What a plan keeps of this pruner."""
        settings = {
            "criterion": self.criterion,
            "ratios": ratios,
            "align": self.align,
            "seed": self.seed,
        }
        return {**settings, "again": True} if self.again else settings

    def plan(
        self,
        model: paddle.nn.Layer,
        trace: Trace,
        groups: ModelGroups,
        ratios: dict[str, float] | None = None,
    ) -> Plan:
        """Choose what to remove; nothing is changed.

        Args:
            model: The model whose weights are scored.
            trace: Its operators at the image size of the costs.
            groups: Its channel groups; those of a pruned model are from `groups_left`.
            ratios: Group name -> share of its units to remove; None for those of the slim file.

        Raises:
            LayerError: A name is unknown or its layer cannot be pruned.
            PlanError: Nothing would be removed.
        """
        if ratios is None:
            ratios = select_groups(self.requests, LayerFinder(model), groups)
        removed = self._places_removed(model, groups, ratios)
        if not removed:
            raise PlanError(
                "nothing to prune: every ratio removes less than one channel; "
                "expected larger ratios or wider layers"
            )
        units = [groups.groups[name].units[places] for name, places in removed.items()]
        plan = Plan(
            architecture=type(model).__name__,
            tensors=tensor_shapes(model),
            image_size_hw=trace.image_size_hw or (0, 0),
            settings=self._settings(ratios),
            cost={},
            groups={
                name: _kept_entry(groups.groups[name], places) for name, places in removed.items()
            },
            slices=slices_without(groups, np.concatenate(units)),
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

    def _places_removed(
        self, model: paddle.nn.Layer, groups: ModelGroups, ratios: dict[str, float]
    ) -> dict[str, np.ndarray]:
        """Group name -> places of the units to remove, for groups that lose any."""
        rng = np.random.default_rng(self.seed)
        parameters = dict(model.named_parameters())
        removed = {}
        for name, ratio in ratios.items():
            group = groups.groups[name]
            places = np.zeros(0, np.int64)
            if units_removed(len(group.units), ratio, self.align):
                scores = self.unit_scores(group, parameters, rng)
                places = least_important(group, scores, ratio, self.align)
            if len(places):
                removed[name] = places
            else:
                logger.warning(
                    "%s: ratio %g of %d channels removes none", name, ratio, group.channels
                )
        return removed

    def unit_scores(
        self, group: Group, parameters: dict[str, paddle.Tensor], rng: np.random.Generator
    ) -> np.ndarray:
        """One score per unit, by the first member that produces it.

        Args:
            group: The group to score.
            parameters: State-dict name -> parameter of the model.
            rng: For the criterion `random`.

        Returns:
            float64 [U]; the least important units have the lowest scores.

        Raises:
            LayerError: The criterion does not fit a layer, or weights or scores are not finite.
        """
        scores = np.full(len(group.units), np.nan)
        order = np.argsort(group.units)
        for member in group.members:
            places = order[np.searchsorted(group.units, member.ids, sorter=order)]
            channel_scores = self._channel_scores(member, parameters, rng)
            total = np.bincount(places, channel_scores, minlength=len(scores))
            new = places[np.isnan(scores[places])]
            scores[new] = total[new]
            if not np.isnan(scores).any():
                break
        return scores

    def _channel_scores(
        self, member: Producer, parameters: dict[str, paddle.Tensor], rng: np.random.Generator
    ) -> np.ndarray:
        weight = _finite(member.parameter, parameters)
        filters = np.moveaxis(weight, member.axis, 0).reshape(len(member.ids), -1)
        scale = _finite(member.batch_norm, parameters) if member.batch_norm else None
        try:
            scores = np.asarray(CRITERIA[self.criterion](filters, scale, rng), np.float64)
        except ValueError as error:
            raise LayerError(f"'{member.parameter}': {error}; choose another criterion") from error
        if scores.shape != (len(filters),) or not np.isfinite(scores).all():
            raise LayerError(
                f"'{member.parameter}': criterion '{self.criterion}' returned an array of "
                f"shape {scores.shape}; expected {len(filters)} finite numbers, one per channel"
            )
        return scores


def _finite(name: str, parameters: dict[str, paddle.Tensor]) -> np.ndarray:
    value = parameters[name].numpy().astype(np.float64)
    if not np.isfinite(value).all():
        raise LayerError(f"'{name}' holds weights that are not finite")
    return value


def _kept_entry(group: Group, removed: np.ndarray) -> dict[str, Any]:
    kept = np.delete(np.arange(len(group.units)), removed)
    return {"channels": group.channels, "kept": kept.tolist()}


def describe_cost(plan: Plan) -> str:
    """One line on the savings of a plan."""
    before, after = plan.cost["before"], plan.cost["after"]
    height, width = plan.image_size_hw
    return (
        f"pruned {len(plan.groups)} groups: MACs at {height}x{width} {before['macs']:.0f} -> "
        f"{after['macs']:.0f} ({after['macs'] / before['macs'] - 1:+.2%}), parameters "
        f"{before['params']:.0f} -> {after['params']:.0f} "
        f"({after['params'] / before['params'] - 1:+.2%})"
    )


def least_important(group: Group, scores: np.ndarray, ratio: float, align: int = 1) -> np.ndarray:
    """Places of the units to remove, ascending; every member keeps at least one of its units.

    Args:
        group: The group to prune.
        scores: One score per unit, [U].
        ratio: Share of the units to remove.
        align: See `units_removed`.
    """
    count = units_removed(len(group.units), ratio, align)
    members = np.array([np.isin(group.units, member.ids) for member in group.members])
    return smallest(scores, count, members)

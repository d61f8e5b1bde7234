"""The pruner: from names and ratios to a plan and the pruned model."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import paddle

from slim_det.compress.prune.compose import groups_left, history
from slim_det.compress.prune.cutting import cut_copies
from slim_det.compress.prune.groups import Group, ModelGroups, find_groups, slices_without
from slim_det.compress.prune.importance import (
    UnitScores,
    check_criterion,
    least_important,
    unit_scores,
)
from slim_det.compress.prune.iterative import IterativePruning
from slim_det.compress.prune.plan import Plan, apply_plan, plan_of
from slim_det.compress.prune.ratios import SHARE_OF, units_removed
from slim_det.compress.prune.reconstruct.elimination import ELIMINATION
from slim_det.compress.prune.reconstruct.settings import read_calibration
from slim_det.compress.prune.requests import read_requests, select_groups
from slim_det.compress.prune.schedule import read_schedule
from slim_det.compress.prune.stepwise import check_epochs, check_rest, divided, record_step
from slim_det.compress.prune.taylor import TAYLOR, check_labels
from slim_det.compress.strategy import Context, Strategy
from slim_det.compress.tensors import tensor_shapes
from slim_det.core.errors import ConfigError, PlanError
from slim_det.core.schema import whole_number
from slim_det.detectors.layer_finder import LayerFinder
from slim_det.graph.cost import model_cost
from slim_det.graph.trace import Trace, trace_detector

logger = logging.getLogger("slim_det")

LEAST_SQUARES = "least_squares"
"""The method that repairs layers."""

FROM_IMAGES = (ELIMINATION, TAYLOR)
"""Criteria that choose channels from images."""

# Settings that make no difference to weights that are pruned already.
_FREE = ("seed", "calibration")

# Settings that plans of earlier versions lack -> what they did.
_IMPLIED = {"share_of": "channels", "repair": None, "calibration": None}


class Pruner(Strategy):
    """Removes the least important channels of named layers from a detector.

    Args:
        criterion: A name in `slim_det.compress.prune.importance.CRITERIA`: `l1_norm`, `l2_norm`,
            `fpgm`, `bn_scale` or `random`; or `elimination`, which finds the channels that the
            others can replace, from images; or `taylor`, by gradients of the loss, from images
            with labels. By default `elimination` with ``repair``, which needs the images anyway,
            and `l1_norm` without.
        pruned_params: Layer names in any spelling, globs, `yolo_head` (the 18 layers of a
            YOLOv3 head) or `all` (every group that can be pruned, the default). Not given if
            ``pruned_ratios`` names the layers itself.
        pruned_ratios: Share of the output channels to remove, each between 0 and 1: one
            number for all, a list as long as ``pruned_params`` (of two ratios for one group the
            first counts, and a line says so), a mapping of names to numbers, or the name of a
            preset (`r578`, `sensity`).
        align: The remaining channels of a layer are rounded to a multiple of this.
        seed: For the criterion `random`, for the positions at which images are sampled, and for
            the augmentation of those of `taylor`.
        print_params: Log the name and shape of every parameter first.
        repair: `least_squares` lets the layers that read removed channels learn their former
            outputs from images, right after the cut; None leaves them as they are.
        calibration: Images, positions and ridge of `elimination` and of the repair, and the number
            of images of `taylor`, with the keys of
            `slim_det.compress.prune.reconstruct.settings.Calibration`.
        share_of: What a ratio is a share of: `channels`, or with `bn_scale` the `energy` of a
            layer's scales, the sum of their squares (see `units_within_energy`).
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
        criterion: str | None = None,
        pruned_params: Any = None,
        pruned_ratios: Any = None,
        align: int = 1,
        seed: int = 0,
        print_params: bool = False,
        repair: str | None = None,
        calibration: Any = None,
        share_of: str = "channels",
        again: bool = False,
        schedule: Any = None,
    ) -> None:
        if criterion is None:
            criterion = "l1_norm" if repair is None else ELIMINATION
        check_criterion(criterion, "Pruner.criterion: unknown criterion", FROM_IMAGES)
        if repair not in (None, LEAST_SQUARES):
            raise ConfigError(f"Pruner.repair: {repair!r} is not valid; expected {LEAST_SQUARES}")
        if share_of not in SHARE_OF:
            raise ConfigError(
                f"Pruner.share_of: {share_of!r} is not valid; expected {' or '.join(SHARE_OF)}"
            )
        if share_of == "energy" and criterion != "bn_scale":
            raise ConfigError(
                "Pruner.share_of: 'energy' is that of batch norm scales and the criterion is "
                f"'{criterion}'; expected criterion: bn_scale"
            )
        if not isinstance(again, bool):
            raise ConfigError(f"Pruner.again: {again!r} is not valid; expected true or false")
        if share_of == "energy" and schedule is not None:
            raise ConfigError(
                "Pruner.schedule divides numbers of channels; expected share_of: channels"
            )
        self.criterion, self.repair = criterion, repair
        self.calibration = read_calibration(calibration)
        if criterion == TAYLOR:
            check_labels(self.calibration)
        self.share_of = share_of
        self.align = whole_number("Pruner.align", align, 1)
        self.seed = whole_number("Pruner.seed", seed, 0)
        self.print_params = print_params
        self.again = again
        self.schedule = read_schedule(schedule)
        self.requests = read_requests(pruned_params, pruned_ratios)
        self._is_list = isinstance(pruned_ratios, (list, tuple))

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

    @property
    def needs_images(self) -> bool:
        """Whether it cannot prune without images."""
        return self.repair is not None or self.criterion in FROM_IMAGES

    def cut(
        self,
        model: paddle.nn.Layer,
        trace: Trace,
        groups: ModelGroups,
        ratios: dict[str, float] | None = None,
        cfg: Any = None,
    ) -> paddle.nn.Layer:
        """Prune a traced model in place, repair it if asked to, and attach the plan to it.

        If the model has a plan already, both become one.

        Args:
            model: See `plan`.
            trace: See `plan`.
            groups: See `plan`.
            ratios: See `plan`.
            cfg: ppdet's configuration, whose readers prepare the images; needed only if
                `needs_images`.

        Raises:
            DataError: There are no images.
            LayerError: A name is unknown or its layer cannot be pruned.
            PlanError: Nothing was removed, or the pruned model does not cost what the plan says.
        """
        if ratios is None:
            ratios = self._asked(model, groups)
        (cut,) = cut_copies(self, model, trace, groups, [ratios], lambda: model, cfg)
        return cut

    def _asked(self, model: paddle.nn.Layer, groups: ModelGroups) -> dict[str, float]:
        """The ratio of each group that the slim file asks for."""
        return select_groups(self.requests, LayerFinder(model), groups, self._is_list)

    def _cut_for(
        self, context: Context, model: paddle.nn.Layer, trace: Trace, groups: ModelGroups
    ) -> paddle.nn.Layer:
        """Prune by the ratios, or by the first step of the schedule if training follows."""
        if self.schedule is None or not context.is_training:
            return self.cut(model, trace, groups, cfg=context.cfg)
        if context.purpose == "resume":
            raise ConfigError(
                f"'{context.weights}' has had no step of the schedule that {context.asked_by} asks "
                f"for; expected -o pretrain_weights={context.weights} instead of -r"
            )
        ratios = self._asked(model, groups)
        steps = divided(self.schedule, ratios, self.align, model, trace, groups)
        check_epochs(steps, context.cfg)
        earlier, settings = plan_of(model), self._settings(ratios)
        if earlier is not None:
            settings["earlier"] = history(earlier.settings)
        self.cut(model, trace, groups, steps.next_ratios(groups), context.cfg)
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
            done["criterion"],
            pruned_ratios=done["ratios"],
            align=done["align"],
            seed=done["seed"],
            repair=done.get("repair"),
            calibration=done.get("calibration"),
        )
        ratios = steps.next_ratios(groups)
        pruner.cut(model, trace_detector(model, size), groups, ratios, context.cfg)
        record_step(model, steps, done)

    @classmethod
    def restore(cls, model: paddle.nn.Layer, step: Plan) -> None:
        """Prune a freshly built model according to a plan."""
        apply_plan(model, step)

    def adopt(self, model: paddle.nn.Layer, step: Plan, context: Context) -> None:
        """Refuse settings that contradict the plan beside the weights, or prune them again.

        With ``again``, a new training and `slim-det prune` prune them in any case. Any other use
        leaves weights as they are if this pruner made the last cut, such as those of a training
        that is resumed.

        Raises:
            ConfigError: Weights to resume have not had the requested cut.
            PlanError: The weights were pruned with other settings.
        """
        unpruned = context.build_detector()
        groups = find_groups(unpruned, trace_detector(unpruned, context.image_size_hw))
        asked = self._settings(self._asked(unpruned, groups))
        is_done = all(
            step.settings.get(key, _IMPLIED.get(key)) == value
            for key, value in asked.items()
            if key not in _FREE
        )
        weights, asked_by = context.weights, context.asked_by
        if self.again and (context.purpose in ("train", "prune") or not is_done):
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
            "share_of": self.share_of,
            "repair": self.repair,
            "calibration": self.calibration.as_dict() if self.needs_images else None,
        }
        return {**settings, "again": True} if self.again else settings

    def plan(
        self,
        model: paddle.nn.Layer,
        trace: Trace,
        groups: ModelGroups,
        ratios: dict[str, float] | None = None,
        scores: UnitScores | None = None,
    ) -> Plan:
        """Choose what to remove; nothing is changed.

        Args:
            model: The model whose weights are scored.
            trace: Its operators at the image size of the costs.
            groups: Its channel groups; those of a pruned model are from `groups_left`.
            ratios: Group name -> share of its units to remove; None for those of the slim file.
            scores: Scores the units of a group; by default the criterion, from weights.

        Raises:
            ConfigError: The criterion needs images, and ``scores`` is not given.
            LayerError: A name is unknown or its layer cannot be pruned.
            PlanError: Nothing would be removed.
        """
        if ratios is None:
            ratios = self._asked(model, groups)
        removed = self._places_removed(groups, ratios, scores or self._weight_scores(model))
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

    def plan_for_costs(self, model: paddle.nn.Layer, trace: Trace, groups: ModelGroups) -> Plan:
        """A plan with the right number of channels; which ones is left open if images decide.

        Arguments and errors are those of `plan`.
        """
        undecided = _in_order if self.criterion in FROM_IMAGES else None
        return self.plan(model, trace, groups, scores=undecided)

    def _places_removed(
        self, groups: ModelGroups, ratios: dict[str, float], scores: UnitScores
    ) -> dict[str, np.ndarray]:
        """Group name -> places of the units to remove, for groups that lose any."""
        energy = self.share_of == "energy"
        removed = {}
        for name, ratio in ratios.items():
            group = groups.groups[name]
            places = np.zeros(0, np.int64)
            count = units_removed(len(group.units), ratio, self.align)
            if energy or count:
                chosen = scores(group, count)
                places = least_important(group, chosen, ratio, self.align, energy)
            if len(places):
                removed[name] = places
            else:
                whole = f"{'the energy of ' if energy else ''}{group.channels} channels"
                logger.warning("%s: ratio %g of %s removes none", name, ratio, whole)
        return removed

    def _weight_scores(self, model: paddle.nn.Layer) -> UnitScores:
        rng = np.random.default_rng(self.seed)
        parameters = dict(model.named_parameters())
        return lambda group, count: unit_scores(self.criterion, group, parameters, rng)


def _in_order(group: Group, count: int) -> np.ndarray:
    """Scores that remove the first units."""
    return np.arange(len(group.units))


def _kept_entry(group: Group, removed: np.ndarray) -> dict[str, Any]:
    kept = np.delete(np.arange(len(group.units)), removed)
    return {"channels": group.channels, "kept": kept.tolist()}

"""The pruner: from names and ratios to a plan and the pruned model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import paddle

from slim_det.compress.prune.groups import Group, ModelGroups, find_groups
from slim_det.compress.prune.importance import CRITERIA, smallest
from slim_det.compress.prune.plan import Plan, apply_plan
from slim_det.compress.prune.ratios import SHARE_OF, units_removed, units_within_energy
from slim_det.compress.prune.reconstruct.reconstruction import reconstruction_of
from slim_det.compress.prune.reconstruct.settings import read_calibration
from slim_det.compress.prune.requests import read_requests, select_groups
from slim_det.compress.strategy import Context, Strategy
from slim_det.compress.tensors import tensor_shapes
from slim_det.core.errors import ConfigError, LayerError, PlanError, nearest
from slim_det.core.schema import whole_number
from slim_det.detectors.layer_finder import LayerFinder
from slim_det.graph.channels import Producer
from slim_det.graph.cost import model_cost
from slim_det.graph.trace import Trace, trace_detector

logger = logging.getLogger("slim_det")

LEAST_SQUARES = "least_squares"
"""The method that repairs layers."""

FROM_IMAGES = ("elimination",)
"""Criteria that choose channels from images."""

UnitScores = Callable[[Group, int], np.ndarray]
"""(group, number of units to remove) -> one score per unit; the lowest are removed."""


class Pruner(Strategy):
    """Removes the least important channels of named layers from a detector.

    Args:
        criterion: A name in `slim_det.compress.prune.importance.CRITERIA`: `l1_norm`, `l2_norm`,
            `fpgm`, `bn_scale` or `random`; or `elimination`, which finds the channels that the
            others can replace, from images.
        pruned_params: Layer names in any spelling, globs, `yolo_head` (the 18 layers of a
            YOLOv3 head) or `all` (every group that can be pruned, the default). Not given if
            ``pruned_ratios`` names the layers itself.
        pruned_ratios: Share of the output channels to remove, each between 0 and 1: one
            number for all, a list as long as ``pruned_params``, a mapping of names to
            numbers, or the name of a preset (`r578`, `sensity`).
        align: The remaining channels of a layer are rounded to a multiple of this.
        seed: For the criterion `random`, and for the positions at which images are sampled.
        print_params: Log the name and shape of every parameter first.
        repair: `least_squares` lets the layers that read removed channels learn their former
            outputs from images, right after the cut; None leaves them as they are.
        calibration: Images, positions and ridge of `elimination` and of the repair, with the keys
            of `slim_det.compress.prune.reconstruct.settings.Calibration`.
        share_of: What a ratio is a share of: `channels`, or with `bn_scale` the `energy` of a
            layer's scales, the sum of their squares (see `units_within_energy`).

    Raises:
        ConfigError: A value is not valid.
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
        repair: str | None = None,
        calibration: Any = None,
        share_of: str = "channels",
    ) -> None:
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
        self.criterion, self.repair, self.share_of = criterion, repair, share_of
        self.calibration = read_calibration(calibration)
        self.align = whole_number("Pruner.align", align, 1)
        self.seed = whole_number("Pruner.seed", seed, 0)
        self.print_params = print_params
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
        return self.cut(model, trace, find_groups(model, trace), context.cfg)

    @property
    def needs_images(self) -> bool:
        """Whether it cannot prune without images."""
        return self.repair is not None or self.criterion in FROM_IMAGES

    def cut(
        self, model: paddle.nn.Layer, trace: Trace, groups: ModelGroups, cfg: Any = None
    ) -> paddle.nn.Layer:
        """Prune a traced model in place, repair it if asked to, and attach the plan to it.

        Args:
            model: See `plan`.
            trace: See `plan`.
            groups: See `plan`.
            cfg: ppdet's configuration, whose ``TestReader`` prepares the images; needed only if
                `needs_images`.

        Raises:
            DataError: There are no images.
            LayerError: A name is unknown or its layer cannot be pruned.
            PlanError: Nothing was removed, or the pruned model does not cost what the plan says.
        """
        if not self.needs_images:
            self._apply(model, self.plan(model, trace, groups))
            return model
        ratios = select_groups(self.requests, LayerFinder(model), groups)
        with reconstruction_of(
            model, trace, groups, cfg, self.calibration, self.seed
        ) as reconstruction:
            chooses = self.criterion in FROM_IMAGES
            reconstruction.observe(list(ratios), chooses, self.repair is not None)
            scores = reconstruction.scores if chooses else None
            plan = self.plan(model, trace, groups, scores)
            self._apply(model, plan)
            if self.repair is not None:
                plan.repair = reconstruction.repair(model, plan).as_dict()
        return model

    def _apply(self, model: paddle.nn.Layer, plan: Plan) -> None:
        apply_plan(model, plan)
        reached = model_cost(model, trace_detector(model, plan.image_size_hw)).as_dict()
        if reached != plan.cost["after"]:
            raise PlanError(
                f"the cut model costs {reached}, the plan says {plan.cost['after']}; "
                "the model's code holds channel numbers that cannot be followed"
            )
        logger.info("%s", describe_cost(plan))

    @classmethod
    def restore(cls, model: paddle.nn.Layer, step: Plan) -> None:
        """Prune a freshly built model according to a plan."""
        apply_plan(model, step)

    def adopt(self, model: paddle.nn.Layer, step: Plan, context: Context) -> None:
        """Refuse settings that contradict the plan beside the weights.

        Raises:
            PlanError: The weights were pruned with other settings.
        """
        done = step.settings
        unpruned = context.build_detector()
        groups = find_groups(unpruned, trace_detector(unpruned, context.image_size_hw))
        ratios = select_groups(self.requests, LayerFinder(unpruned), groups)
        asked = (self.criterion, self.align, ratios, self.repair is not None, self.share_of)
        before = (done["criterion"], done["align"], done["ratios"], step.repair is not None)
        if asked != (*before, done.get("share_of", "channels")):  # plans of earlier versions
            raise PlanError(
                f"'{context.weights}' was already cut, with {done['criterion']}, in another way "
                f"than {context.asked_by} asks for; leave --slim_config out, or start from "
                "unpruned weights"
            )
        logger.info(
            "'%s' is already cut as %s asks; its plan is used", context.weights, context.asked_by
        )

    def plan(
        self,
        model: paddle.nn.Layer,
        trace: Trace,
        groups: ModelGroups,
        scores: UnitScores | None = None,
    ) -> Plan:
        """Choose what to remove; nothing is changed.

        Args:
            model: The model whose weights are scored.
            trace: Its operators at the image size of the costs.
            groups: Its channel groups.
            scores: Scores the units of a group; by default the criterion, from weights.

        Raises:
            ConfigError: The criterion needs images, and ``scores`` is not given.
            LayerError: A name is unknown or its layer cannot be pruned.
            PlanError: Nothing would be removed.
        """
        ratios = select_groups(self.requests, LayerFinder(model), groups)
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
            settings={
                "criterion": self.criterion,
                "ratios": ratios,
                "align": self.align,
                "seed": self.seed,
                "share_of": self.share_of,
            },
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
        return self.plan(model, trace, groups, undecided)

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
        return lambda group, count: self.unit_scores(group, parameters, rng)

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
            ConfigError: The criterion needs images.
            LayerError: The criterion does not fit a layer, or weights or scores are not finite.
        """
        if self.criterion not in CRITERIA:
            raise ConfigError(
                f"criterion '{self.criterion}' needs images, which are not read here; expected "
                f"one of {', '.join(CRITERIA)}"
            )
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


def check_criterion(name: Any, where: str, more: Iterable[str] = ()) -> None:
    """Make sure that a criterion exists.

    Args:
        name: Its name.
        where: Beginning of the message.
        more: Names that are accepted besides those of `CRITERIA`.

    Raises:
        ConfigError: It does not.
    """
    known = (*CRITERIA, *more)
    if not isinstance(name, str) or name not in known:
        raise ConfigError(f"{where} {name!r}{nearest(str(name), known)}")


def _in_order(group: Group, count: int) -> np.ndarray:
    """Scores that remove the first units."""
    return np.arange(len(group.units))


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


def least_important(
    group: Group, scores: np.ndarray, ratio: float, align: int = 1, energy: bool = False
) -> np.ndarray:
    """Places of the units to remove, ascending; every member keeps at least one of its units.

    Args:
        group: The group to prune.
        scores: One score per unit, [U].
        ratio: Share to remove.
        align: See `units_removed`.
        energy: Whether it is a share of the energy (see `units_within_energy`), not of the units.
    """
    members = np.array([np.isin(group.units, member.ids) for member in group.members])
    if not energy:
        return smallest(scores, units_removed(len(group.units), ratio, align), members)
    count = units_within_energy(scores, ratio, align)
    # A unit that a member has to keep is not replaced by one with more energy.
    return np.intersect1d(smallest(scores, count, members), smallest(scores, count))


def slices_without(groups: ModelGroups, removed: np.ndarray) -> dict[str, dict[int, np.ndarray]]:
    """Parameter name -> axis -> places kept, for every axis that loses units.

    Args:
        groups: All channel groups of a model.
        removed: Identities of the removed units.
    """
    slices: dict[str, dict[int, np.ndarray]] = {}
    for axis in groups.axes:
        keep = ~np.isin(axis.ids, removed)
        if not keep.all():
            slices.setdefault(axis.parameter, {})[axis.axis] = np.flatnonzero(keep)
    return slices

"""The `Slim` of a slim file: training that drives the scales of batch norms towards zero."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import paddle
from paddle.regularizer import L1Decay, L2Decay, WeightDecayRegularizer

from slim_det.compress.hook import Hook
from slim_det.compress.prune.groups import ModelGroups, find_groups
from slim_det.compress.prune.requests import as_number, groups_named, read_layers
from slim_det.compress.steps import Step, attach_step, step_of
from slim_det.compress.strategy import Context, Strategy
from slim_det.core.errors import ConfigError, LayerError
from slim_det.detectors.layer_finder import LayerFinder
from slim_det.graph.trace import trace_detector

logger = logging.getLogger("slim_det")

SMALL = 0.01
"""A scale up to this share of the largest of its layer counts as near zero."""


@dataclass
class Sparsity(Step):
    """An L1 penalty that lasts for a training: nothing in the model changes, so it has no file.

    Attributes:
        weight: Weight of the penalty.
        scales: State-dict names of the batch norm scales that it acts on.
    """

    state: ClassVar[str] = "trained for sparsity"
    changes_model: ClassVar[bool] = False

    weight: float
    scales: list[str]


class AddedL1(WeightDecayRegularizer):
    """Adds an L1 penalty to the weight decay that a parameter has already.

    Args:
        weight: Weight of the penalty; its gradient is ``weight * sign(parameter)``.
        own: The weight decay of the parameter, if any.
    """

    def __init__(self, weight: float, own: WeightDecayRegularizer | None) -> None:
        super().__init__()
        self._penalty, self._own = L1Decay(weight), own

    def __call__(self, param: Any, grad: Any, block: Any) -> Any:
        """What the optimizer adds to the gradient of a parameter."""
        penalty = self._penalty(param, grad, block)
        return penalty if self._own is None else penalty + self._own(param, grad, block)


class SparsityPenalty(Hook):
    """Lets the optimizer penalize the scales during a training, and counts those near zero.

    The penalty is a regularizer of the parameters, so losses and gradients stay those of the
    detector. The optimizer adds it after mixed precision has unscaled the gradients and after they
    were clipped. It is set when the optimizer exists, because the optimizer's weight decay holds
    for parameters that have none, and because groups of parameters replace it.

    Args:
        trainer: ppdet's Trainer, with a model that has a `Sparsity` step.

    Raises:
        ConfigError: The model has none.
    """

    def __init__(self, trainer: Any) -> None:
        super().__init__(trainer)
        step = step_of(trainer.model, Sparsity)
        if step is None:
            raise ConfigError("no scales are penalized; 'slim' has to name Slim")
        parameters = dict(trainer.model.named_parameters())
        self.weight = step.weight
        self.scales = [parameters[name] for name in step.scales]
        self._borrowed: list[tuple[paddle.Tensor, Any]] = []

    def before_training(self, status: dict[str, Any]) -> None:
        """Add the penalty to what the optimizer does; with weight 0 nothing changes."""
        if self._borrowed or not self.weight:
            return
        self._borrowed = [(scale, scale.regularizer) for scale in self.scales]
        for scale, _ in self._borrowed:
            scale.regularizer = AddedL1(self.weight, decay_of(scale, self.trainer.optimizer))

    def after_train_epoch(self, status: dict[str, Any]) -> None:
        """Log how many scales a pruning would find near zero."""
        if self.is_main_process:
            few = sum(near_zero(scale.numpy()) for scale in self.scales)
            every = sum(scale.size for scale in self.scales)
            logger.info(
                "epoch %d: %d of %d batch norm scales are at most %g %% of their layer's largest",
                *(status["epoch_id"], few, every, 100 * SMALL),
            )

    def on_train_end(self, status: dict[str, Any]) -> None:
        """Leave the parameters as they were."""
        for scale, own in self._borrowed:
            scale.regularizer = own
        self._borrowed = []


class Slim(Strategy):
    """Trains a detector with an L1 penalty on batch norm scales, for a later pruning by `bn_scale`.

    Network slimming (Liu et al. 2017, arXiv 1708.06519, equation 1): ``sparsity * sum(|scale|)`` is
    minimized together with the loss, so channels that the detector can do without get scales near
    zero. The penalty acts on batch norms directly behind the layers that make the channels of a
    group, because `bn_scale` reads those.

    The penalty alone moves a scale by at most ``sparsity`` times the sum of the learning rates over
    all steps, divided by 1 - momentum. Scales start at 1, so short trainings need a larger weight.

    Args:
        sparsity: Weight of the penalty; 0 trains without it.
        params: Layer names in the notations of ``Pruner.pruned_params``; all groups that can be
            pruned by default.

    Raises:
        ConfigError: A value is not valid.
    """

    step = Sparsity
    hooks = (SparsityPenalty,)
    comes_after = ("Pruner",)
    comes_before = ("Distill", "QAT")
    excludes = {"PTQ": "'PTQ' does not train; train for sparsity first, prune, then quantize"}
    only_in_training = True

    def __init__(self, sparsity: float = 1e-4, params: Any = None) -> None:
        weight = None if isinstance(sparsity, bool) else as_number(sparsity)
        if weight is None or not 0.0 <= weight < math.inf:
            raise ConfigError(f"Slim.sparsity: {sparsity!r} is not valid; expected a number >= 0")
        self.sparsity = weight
        self.layers = read_layers(params, "Slim.params")

    def __call__(self, model: paddle.nn.Layer, context: Context) -> paddle.nn.Layer:
        """Find the scales to penalize; the model itself is not changed.

        Raises:
            LayerError: A layer is unknown, cannot be pruned, or has no such scale.
        """
        groups = find_groups(model, trace_detector(model, context.image_size_hw))
        scales = scales_of(model, groups, self.layers)
        attach_step(model, Sparsity(self.sparsity, scales))
        logger.info(
            "the L1 penalty %g acts on the scales of %d batch norms", self.sparsity, len(scales)
        )
        return model


def scales_of(model: paddle.nn.Layer, groups: ModelGroups, layers: list[str]) -> list[str]:
    """State-dict names of the trained batch norm scales of named layers, in execution order.

    Args:
        model: A detector.
        groups: Its channel groups.
        layers: Names in any spelling (see `LayerFinder`), globs, or `all`.

    Raises:
        LayerError: A name is unknown, cannot be pruned, or no scale belongs to it.
    """
    finder, parameters = LayerFinder(model), dict(model.named_parameters())
    chosen: set[str] = set()
    for spelling in layers:
        names = groups_named(spelling, finder, groups)
        members = [member for name in names for member in groups.groups[name].members]
        found = {m.batch_norm for m in members if m.batch_norm}
        trained = {name for name in found if not parameters[name].stop_gradient}
        if not trained:
            raise LayerError(
                f"Slim.params: '{spelling}' has no batch norm directly behind it that is trained"
            )
        chosen |= trained
    return [name for name in parameters if name in chosen]


def decay_of(scale: paddle.Tensor, optimizer: Any) -> WeightDecayRegularizer | None:
    """The weight decay of a parameter: its own, or else that of the optimizer.

    `paddle.optimizer.Momentum` keeps an L2 decay of its own, or one for each group of parameters,
    to compute it in its kernel; it does not do so for a parameter with another regularizer.
    """
    if scale.regularizer is not None:
        return scale.regularizer
    groups = (group for group in optimizer._param_groups if isinstance(group, dict))
    group = next((g for g in groups if any(scale is p for p in g["params"])), {})
    own = getattr(optimizer, "_regularization_coeff", 0.0)
    coefficient = group.get("regularization_coeff", own)
    return L2Decay(coefficient) if coefficient else optimizer.regularization


def near_zero(scale: np.ndarray) -> int:
    """How many scales of a layer are at most `SMALL` of its largest, in absolute value."""
    sizes = np.abs(scale)
    return int(np.count_nonzero(sizes <= SMALL * sizes.max()))

"""The criterion `taylor`: how much the training loss changes without a unit, to first order.

It is that of Molchanov et al. 2019 (arXiv 1906.10771), from images with labels. The *gates* of a
unit are the numbers that make its channels: with all of them at zero, the unit is gone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from slim_det.compress.images import labelled_batches
from slim_det.compress.prune.groups import Group, ModelGroups
from slim_det.compress.prune.importance import UnitScores
from slim_det.compress.prune.reconstruct.settings import Calibration
from slim_det.core.errors import ConfigError, LayerError
from slim_det.graph.channels import ParameterAxis
from slim_det.graph.dygraph import loss_mode, seeded

logger = logging.getLogger("slim_det")

TAYLOR = "taylor"
"""Name of the criterion."""


def check_labels(calibration: Calibration) -> None:
    """Refuse images that have no labels.

    Raises:
        ConfigError: They are from a folder.
    """
    if calibration.folder is not None:
        raise ConfigError(
            f"Pruner.calibration.folder: criterion '{TAYLOR}' needs labels and the images of "
            f"'{calibration.folder}' have none; expected those of TrainDataset, without a folder"
        )


def taylor_scores(
    model: paddle.nn.Layer,
    groups: ModelGroups,
    names: Iterable[str],
    cfg: Any,
    calibration: Calibration,
    seed: int,
) -> UnitScores:
    """Score groups on the first images of ``TrainDataset``, prepared by ``TrainReader``.

    Weights, gradients, batch norm statistics, modes and random states are the same afterwards.

    Args:
        model: A ppdet detector.
        groups: Its channel groups.
        names: Those to score.
        cfg: ppdet's configuration; None in a command that reads no images.
        calibration: How many images.
        seed: Of the augmentations of ``TrainReader``.

    Returns:
        (group, number of units to remove) -> one score per unit, float64 [U], for any number.

    Raises:
        ConfigError: The command reads no images.
        DataError: There are no images, or they have no labels.
        LayerError: A gradient is not finite.
    """
    if cfg is None:
        raise ConfigError("images are needed, and this command reads none")
    with seeded(seed):
        count, batches = labelled_batches(cfg, calibration.images)
        logger.info("gradients of the training loss on %d images of TrainDataset", count)
        scores = scores_on(model, groups, names, batches)
    return lambda group, count: scores[group.name]


def scores_on(
    model: paddle.nn.Layer,
    groups: ModelGroups,
    names: Iterable[str],
    batches: Iterable[dict[str, Any]],
) -> dict[str, np.ndarray]:
    """The sum, over batches, of the squared sum of ``gradient * value`` over a unit's gates.

    Args:
        model: See `taylor_scores`.
        groups: See `taylor_scores`.
        names: See `taylor_scores`.
        batches: Inputs of the model in training.

    Returns:
        Group name -> one score per unit, float64 [U].

    Raises:
        LayerError: A gradient is not finite.
    """
    gates = {name: gates_of(groups.groups[name], groups) for name in names}
    scores = {name: np.zeros(len(groups.groups[name].units)) for name in gates}
    parameters = dict(model.named_parameters())
    used = {axis.parameter: parameters[axis.parameter] for axes in gates.values() for axis in axes}
    with loss_mode(model), _with_gradients(used.values()):
        for batch in tqdm(batches, "gradients", unit="batch", disable=None, leave=False):
            products = _products(model, used, batch)
            for name, axes in gates.items():
                scores[name] += np.square(_unit_sums(groups.groups[name], axes, products))
    return scores


def gates_of(group: Group, groups: ModelGroups) -> list[ParameterAxis]:
    """The parameters that make the channels of a group, over all members, each once.

    They are scale and shift of the batch norm directly behind a member; of a member without one,
    its weight and bias.
    """
    names: set[str] = set()
    for one in group.members:
        names |= {one.batch_norm, one.shift} if one.batch_norm else {one.parameter, one.bias}
    return [axis for axis in groups.axes if axis.makes and axis.parameter in names]


def _products(
    model: paddle.nn.Layer, used: dict[str, paddle.Tensor], batch: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Gradient times value of parameters, float64; those that do not affect the loss are absent."""
    # Without hooks: a teacher that is attached to the model adds nothing to the loss.
    loss = model.forward({**batch, "epoch_id": 0})["loss"]
    gradients = paddle.grad([loss], list(used.values()), allow_unused=True)
    products = {}
    for (name, value), gradient in zip(used.items(), gradients):
        if gradient is not None:
            products[name] = gradient.numpy().astype(np.float64) * value.numpy()
            if not np.isfinite(products[name]).all():
                raise LayerError(f"the gradient of '{name}' is not finite; expected a finite loss")
    return products


def _unit_sums(
    group: Group, axes: list[ParameterAxis], products: dict[str, np.ndarray]
) -> np.ndarray:
    """Sum of products over the gates of each unit, float64 [U]."""
    sums = np.zeros(len(group.units))
    for axis in axes:
        if axis.parameter in products:
            channels = np.moveaxis(products[axis.parameter], axis.axis, 0)
            totals = channels.reshape(len(channels), -1).sum(axis=1)
            sums += np.bincount(group.places_of(axis.ids), totals, minlength=len(sums))
    return sums


@contextlib.contextmanager
def _with_gradients(parameters: Iterable[paddle.Tensor]) -> Iterator[None]:
    """Compute gradients also of parameters that are not trained."""
    frozen = [parameter for parameter in parameters if parameter.stop_gradient]
    for parameter in frozen:
        parameter.stop_gradient = False
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.stop_gradient = True

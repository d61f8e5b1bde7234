"""Sensitivity without evaluation: the error that the other channels cannot make good, from images.

One elimination of a group (see `slim_det.compress.prune.reconstruct.elimination`) gives the
relative squared error of the layers that read it at every number of removed channels.
"""

from __future__ import annotations

import math
import time
from typing import Any

import paddle
from tqdm import tqdm

from slim_det.compress.prune.groups import find_groups
from slim_det.compress.prune.ratios import units_removed
from slim_det.compress.prune.reconstruct.reconstruction import reconstruction_of
from slim_det.compress.prune.reconstruct.settings import Calibration
from slim_det.compress.tensors import fingerprint, tensor_shapes
from slim_det.core.files import sha256_of
from slim_det.detectors.image_size import image_size_hw
from slim_det.graph.trace import trace_detector
from slim_det.planning.sensitivity.candidates import choose_groups
from slim_det.planning.sensitivity.result import (
    RECONSTRUCTION_ERROR,
    Conditions,
    Request,
    SensitivityResult,
    Sources,
)
from slim_det.training.checkpoint import checkpoint_stem, params_path


def error_curves(
    cfg: Any,
    model: paddle.nn.Layer,
    ratios: tuple[float, ...],
    params: tuple[str, ...] | None,
    calibration: Calibration,
    seed: int = 0,
) -> SensitivityResult:
    """The loss of every group at every ratio: ``1 - exp(-error)`` of what elimination leaves.

    The error is relative to the outputs of the readers and summed over them. In this form the
    budget solver, which adds up ``-log(1 - loss)``, adds up errors.

    Args:
        cfg: ppdet's configuration.
        model: The model with trained weights.
        ratios: Shares of channels to remove, ascending.
        params: Layers in any spelling; None for the 18 of a YOLOv3 head, or every group.
        calibration: Images and positions.
        seed: Of the sampled positions.

    Raises:
        DataError: There are no images.
        LayerError: A layer is unknown or cannot be cut.
    """
    start = time.monotonic()
    size_hw = image_size_hw(cfg)
    trace = trace_detector(model, size_hw)
    groups = find_groups(model, trace)
    names = choose_groups(model, groups, params)
    losses: dict[str, dict[float, float]] = {}
    with reconstruction_of(model, trace, groups, cfg, calibration, seed) as reconstruction:
        reconstruction.observe(names, choose=True, repair=False)
        for name in tqdm(names, "elimination", unit="group", disable=None, leave=False):
            group = groups.groups[name]
            counts = {ratio: units_removed(len(group.units), ratio) for ratio in ratios}
            errors = [0.0, *reconstruction.eliminate(group, max(counts.values())).errors.tolist()]
            losses[name] = {
                # Fewer errors than counts: every layer of the group keeps a channel.
                ratio: -math.expm1(-errors[min(count, len(errors) - 1)])
                for ratio, count in counts.items()
            }
        num_images = reconstruction.images
    return SensitivityResult(
        Conditions(RECONSTRUCTION_ERROR, None, num_images, "elimination", size_hw),
        Sources(
            fingerprint=fingerprint(type(model).__name__, tensor_shapes(model)),
            weights_sha256=sha256_of(params_path(checkpoint_stem(cfg.weights))),
        ),
        Request(
            group_order=tuple(names),
            ratios=ratios,
            channels={name: groups.groups[name].channels for name in names},
        ),
        losses,
        ap={},
        seconds=time.monotonic() - start,
    )

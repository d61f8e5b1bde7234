"""Sensitivity without evaluation: the error that the other channels cannot make good, from images.

One elimination of a group (see `slim_det.compress.prune.reconstruct.elimination`) gives the
relative squared error of the layers that read it at every number of removed channels.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from slim_det.compress.prune.groups import ModelGroups, find_groups
from slim_det.compress.prune.ratios import units_removed
from slim_det.compress.prune.reconstruct.reconstruction import Reconstruction, reconstruction_of
from slim_det.compress.prune.reconstruct.settings import Calibration
from slim_det.compress.tensors import fingerprint, tensor_shapes
from slim_det.core.files import sha256_of
from slim_det.detectors.image_size import image_size_hw
from slim_det.graph.trace import Trace, trace_detector
from slim_det.planning.sensitivity.candidates import choose_groups
from slim_det.planning.sensitivity.detection_error import IMAGES, DetectionErrors, suppression
from slim_det.planning.sensitivity.partial_inference import DetectorProgram
from slim_det.planning.sensitivity.result import (
    DETECTION_ERROR,
    RECONSTRUCTION_ERROR,
    Conditions,
    Request,
    SensitivityResult,
    Sources,
)
from slim_det.planning.sensitivity.workers import threads_each
from slim_det.training.checkpoint import checkpoint_stem, params_path

logger = logging.getLogger("slim_det")

MEASURED = 3
"""Ratios of a group at which the detector is run; those between are interpolated."""


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
    with (
        reconstruction_of(model, trace, groups, cfg, calibration, seed) as reconstruction,
        _detection_errors(trace, groups, names, reconstruction) as detector,
    ):
        reconstruction.observe(names, choose=True, repair=False)
        for name in tqdm(names, "elimination", unit="group", disable=None, leave=False):
            group = groups.groups[name]
            counts = [units_removed(len(group.units), ratio) for ratio in ratios]
            found = reconstruction.eliminate(group, max(counts))
            # Fewer errors than counts: every layer of the group keeps a channel.
            counts = [min(count, len(found.order)) for count in counts]
            errors = np.concatenate([[0.0], found.errors])[counts]
            if detector is not None and errors.any():
                chosen = measured_places(errors)
                cuts = [found.order[: counts[place]] for place in chosen]
                changes = reconstruction.readers_without(group, cuts)
                errors = between(errors, chosen, detector.measure(changes))
            losses[name] = dict(zip(ratios, (-np.expm1(-errors)).tolist()))
        num_images = reconstruction.images
    metric = RECONSTRUCTION_ERROR if detector is None else DETECTION_ERROR
    return SensitivityResult(
        Conditions(metric, None, num_images, "elimination", size_hw),
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


@contextlib.contextmanager
def _detection_errors(
    trace: Trace, groups: ModelGroups, names: list[str], reconstruction: Reconstruction
) -> Iterator[DetectionErrors | None]:
    """What measures the detector; None, and a line that says so, if its outputs do not allow it."""
    variables = {name: variable for variable, name in trace.parameters.items()}
    with tempfile.TemporaryDirectory(prefix="slim_det_errors_") as folder:
        program = DetectorProgram(folder, threads_each(1), reconstruction.program)
        op = suppression(program)
        if op is None:
            logger.warning(
                "the detector does not end in the suppression of fixed candidates: losses are "
                "errors of the layers that read a group"
            )
            yield None
            return
        readers = [
            [variables[axis.parameter] for axis in groups.axes_reading(groups.groups[name].units)]
            for name in names
        ]
        yield DetectionErrors(program, op, reconstruction.some_images(IMAGES), readers)


def measured_places(errors: np.ndarray) -> list[int]:
    """Places of at most three ratios with an error, evenly spread; the last is among them."""
    places = np.flatnonzero(errors > 0.0)
    if len(places) > MEASURED:
        places = places[np.linspace(0, len(places) - 1, MEASURED + 1).round().astype(int)[1:]]
    return places.tolist()


def between(errors: np.ndarray, places: list[int], measured: list[float]) -> np.ndarray:
    """Errors of the detector at every ratio, from some of them and the errors of the readers.

    Between measured points the logarithm of one grows linearly with that of the other; below the
    first, both fall alike. What is measured never falls with the ratio.

    Args:
        errors: Of the readers, float64 [R], ascending.
        places: Of the measured ones, ascending; all have an error.
        measured: Errors of the detector there.
    """
    found = np.zeros_like(errors)
    if not places:
        return found
    known = np.log(errors[places])
    values = np.log(np.maximum(np.maximum.accumulate(measured), 1e-12))
    some = errors > 0.0
    place = np.log(errors[some])
    found[some] = np.exp(np.interp(place, known, values) + np.minimum(place - known[0], 0.0))
    return found

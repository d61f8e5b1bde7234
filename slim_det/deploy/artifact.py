"""Writes an artifact for Paddle Inference and checks it before it is published."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import paddle

from slim_det.compress.quantize.model import program_ranges
from slim_det.compress.quantize.record import record_of
from slim_det.core.errors import ExportError
from slim_det.core.files import require_writable, staged_folder
from slim_det.deploy.checks import check_integers, check_outputs, check_parameters
from slim_det.deploy.export_keys import check_export_keys, fuses_batch_norm
from slim_det.deploy.latency import random_batch
from slim_det.deploy.manifest import write_manifest
from slim_det.deploy.metric_check import MAX_GAP, MetricCheck, check_metric
from slim_det.deploy.predictor import (
    INFER_CFG,
    MANIFEST_FILE,
    MODEL_FILE,
    PARAMS_FILE,
    Predictor,
    infer_settings,
)
from slim_det.deploy.preprocessing import (
    check_preprocessing,
    check_test_reader,
    deployed_program,
    fused_normalization,
    write_settings,
)
from slim_det.detectors.image_size import image_size_hw, program_size_hw, target_size_hw
from slim_det.evaluate.evaluation import class_names, median_latency_ms
from slim_det.evaluate.images import eval_images
from slim_det.graph.cost import detector_cost
from slim_det.graph.folding import fold_batch_norm
from slim_det.graph.int8_program import write_int8
from slim_det.graph.integers import LayerRanges
from slim_det.graph.normalization import read_normalization
from slim_det.graph.program import DeployProgram

logger = logging.getLogger("slim_det")

LATENCY_RUNS = 10

_REMEDY = "add --infer_img FILE or --infer_dir FOLDER"
_KNOWN_FILES = {MODEL_FILE, PARAMS_FILE, INFER_CFG, MANIFEST_FILE, "model.pdiparams.info", "lite"}


@dataclass(frozen=True)
class ExportResult:
    """An artifact and its measurements.

    Attributes:
        artifact: Folder of the artifact.
        precision: ``int8`` or ``float32``.
        size_mb: Size of model and parameters on disk, in megabytes (10^6 bytes).
        macs: Multiply-accumulates at the artifact's image size.
        params: Number of parameters, including batch norm's running statistics.
        image_size_hw: Height and width in pixels; the largest, if images keep their ratio.
        latency_ms: Median of single-image runs on all cores, including decoding and NMS.
        ap: AP of the artifact on ``EvalDataset``, fraction 0 to 1; None if not measured.
        per_class: Class or WIDER FACE setting -> AP; None likewise.
        layers_float: Layers of an int8 model that stay in float.
        images_checked: For a float model, images on which both engines' boxes were compared; for
            an int8 model, images on which both were evaluated.
        boxes: Number of boxes compared.
        max_score_difference: Largest score difference; None if no boxes were compared.
        max_pixel_difference: Largest coordinate difference in pixels; None likewise.
    """

    artifact: str
    precision: str
    size_mb: float
    macs: int
    params: int
    image_size_hw: tuple[int, int]
    latency_ms: float
    ap: float | None = None
    per_class: dict[str, float] | None = None
    layers_float: tuple[str, ...] = ()
    images_checked: int = 0
    boxes: int = 0
    max_score_difference: float | None = None
    max_pixel_difference: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The result as a dict with its JSON keys."""
        return asdict(self)

    def __str__(self) -> str:
        """One or two human-readable lines."""
        line = (
            f"exported {self.artifact} ({self.precision}, {self.size_mb:.2f} MB, {self.macs} MACs "
            f"at {self.image_size_hw[0]}x{self.image_size_hw[1]}, {self.latency_ms:.1f} ms)"
        )
        if self.layers_float:
            line += f"; in float: {', '.join(self.layers_float)}"
        if self.max_score_difference is None:
            return line
        return (
            f"{line}\n"
            f"Paddle Inference agrees on {self.images_checked} images: {self.boxes} boxes, scores "
            f"within {self.max_score_difference:.1e}, corners within "
            f"{self.max_pixel_difference:.1e} pixels"
        )


def export_model(
    model: paddle.nn.Layer,
    cfg: Any,
    output_dir: str | Path,
    images: list[str] | None = None,
    max_gap: float | None = MAX_GAP,
    in_float: float | None = None,
) -> ExportResult:
    """Export a detector, and publish the artifact only if it matches the model.

    For a float model both engines must compute the same raw outputs and boxes. For a quantized
    model the same layers must be int8, and AP must be nearly the same. Images are read as they will
    be when it is deployed, by its ``infer_cfg.yml``.

    Args:
        model: A detector with trained weights, float or quantized.
        cfg: ppdet's configuration; ``TestReader`` defines the preprocessing.
        output_dir: The artifact goes to a subfolder with the configuration's name.
        images: Images to compare the engines of a float model on; by default the first of
            ``EvalDataset``.
        max_gap: Largest AP difference in points between a quantized model and its artifact; None
            to skip measuring AP.
        in_float: AP of the float model that a quantized one was calibrated from, if it is known.

    Raises:
        ExportError: The artifact differs from the model or has lost its AP, or the images cannot be
            read.
        QuantError: The model has lost its scales.
        DataError: The class names are missing or do not match ``num_classes``.
        ConfigError: A key of ``export`` asks for what is not exported, ``TestReader`` does not
            normalise as ``EvalReader`` does, or the folder cannot be written to.
    """
    check_export_keys(cfg)
    class_names(cfg)  # ppdet would write other names if these cannot be read
    record = record_of(model)
    ranges = None if record is None else program_ranges(model)
    target = require_writable(output_dir) / cfg.filename
    _require_replaceable(target)
    size_hw = image_size_hw(cfg)
    model.eval()
    resized_hw = target_size_hw(cfg)
    check_test_reader(cfg, resized_hw)
    with staged_folder(target) as staging:
        _write(model, cfg, staging, resized_hw, ranges)
        inside = read_normalization(DeployProgram.load(staging / Path(MODEL_FILE).stem))
        check_preprocessing(cfg, infer_settings(staging), inside, resized_hw)
        if ranges is None:
            found, metric = _checked_float(model, cfg, staging, images), None
        else:
            metric = _checked_int8(model, cfg, staging, ranges, max_gap, in_float)
            found = metric.of_artifact() if metric else {}
        cost = detector_cost(model, size_hw)
        size = sum((staging / name).stat().st_size for name in (MODEL_FILE, PARAMS_FILE))
        result = ExportResult(
            artifact=str(target),
            precision="float32" if record is None else "int8",
            size_mb=size / 1e6,
            macs=cost.macs,
            params=cost.params,
            image_size_hw=size_hw,
            latency_ms=median_latency_ms(Predictor(staging), random_batch(size_hw), LATENCY_RUNS),
            layers_float=() if record is None else tuple(record.kept_float),
            **found,
        )
        measured = {k: v for k, v in result.as_dict().items() if k != "artifact"}
        write_manifest(model, staging, measured, asdict(metric) if metric else None)
    logger.info("%s", result)
    return result


def _checked_float(
    model: paddle.nn.Layer, cfg: Any, folder: Path, images: list[str] | None
) -> dict[str, Any]:
    """Check shapes, size and outputs of a float artifact; returns fields of `ExportResult`."""
    check_parameters(model, folder, image_size_hw(cfg), fuses_batch_norm(cfg))
    agreement, checked = check_outputs(model, cfg, folder, images or eval_images(_REMEDY))
    return {
        "images_checked": checked,
        "boxes": agreement.boxes,
        "max_score_difference": agreement.max_score,
        "max_pixel_difference": agreement.max_pixels,
    }


def _checked_int8(
    model: paddle.nn.Layer,
    cfg: Any,
    folder: Path,
    ranges: Mapping[str, LayerRanges],
    max_gap: float | None,
    in_float: float | None,
) -> MetricCheck | None:
    """Check layers, size and AP of an int8 artifact; None if AP is not measured."""
    check_integers(model, folder, ranges)
    write_manifest(model, folder)  # the predictor reads the engine settings from it
    if max_gap is None:
        logger.info("AP of the int8 model was not measured (--no_eval)")
        return None
    metric = check_metric(model, cfg, folder, target_size_hw(cfg), max_gap, in_float)
    logger.info("%s", metric)
    return metric


def _write(
    model: paddle.nn.Layer,
    cfg: Any,
    folder: Path,
    resized_hw: tuple[int, int],
    ranges: Mapping[str, LayerRanges] | None,
) -> None:
    program = deployed_program(model, program_size_hw(cfg), fused_normalization(cfg))
    if ranges is not None or fuses_batch_norm(cfg):
        fold_batch_norm(program)
    if ranges is not None:
        write_int8(program, ranges)
    program.save(folder / "model")
    write_settings(cfg, resized_hw, folder)


def _require_replaceable(target: Path) -> None:
    """Refuse to replace a folder that holds anything but an earlier artifact."""
    found = target.iterdir() if target.exists() else ()
    others = sorted(path.name for path in found if path.name not in _KNOWN_FILES)
    if others:
        raise ExportError(
            f"'{target}' holds files that do not belong to an artifact ({others[0]}); "
            "choose another --output_dir"
        )

"""Writes an artefact for Paddle Inference, checked before it is published."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from ppdet.core.workspace import create
from ppdet.engine import export_utils

from slim_det.config import image_size_hw
from slim_det.cost import BYTES_PER_FLOAT, detector_cost
from slim_det.errors import ConfigError, ExportError
from slim_det.export.boxes import BoxAgreement, compare_boxes
from slim_det.export.predictor import (
    FACTS_FILE,
    INFER_CFG,
    MODEL_FILE,
    PARAMS_FILE,
    Predictor,
)
from slim_det.files import require_writable, sha256_of, write_json
from slim_det.metrics.evaluation import class_names, dygraph_predictor, quiet_stdout
from slim_det.program import deployment_program, save_detector
from slim_det.prune.plan import plan_of
from slim_det.version import __version__

logger = logging.getLogger("slim_det")

CHECKED_IMAGES = 8
SCHEMA = "slim_det.artifact/1"


@dataclass(frozen=True)
class ExportResult:
    """An artefact and what was measured on it.

    Attributes:
        artifact: Its folder.
        size_mb: Bytes of model and parameters on disk, in megabytes (10^6 bytes).
        macs: Multiply-accumulates at the artefact's image size.
        params: Parameters, running statistics of batch norm included.
        image_size_hw: Height and width in pixels.
        images_checked: Images whose boxes were compared with the model in training's engine.
        boxes: Boxes compared.
        max_score_difference: Largest difference of a score.
        max_pixel_difference: Largest difference of a corner, in pixels.
    """

    artifact: str
    size_mb: float
    macs: int
    params: int
    image_size_hw: tuple[int, int]
    images_checked: int
    boxes: int
    max_score_difference: float
    max_pixel_difference: float

    def as_dict(self) -> dict[str, Any]:
        """The result under its JSON keys."""
        return asdict(self)

    def __str__(self) -> str:
        """Two lines for people."""
        return (
            f"exported {self.artifact} ({self.size_mb:.2f} MB, {self.macs} MACs at "
            f"{self.image_size_hw[0]}x{self.image_size_hw[1]})\n"
            f"Paddle Inference agrees on {self.images_checked} images: {self.boxes} boxes, scores "
            f"within {self.max_score_difference:.1e}, corners within "
            f"{self.max_pixel_difference:.1e} pixels"
        )


def export_model(
    model: paddle.nn.Layer, cfg: Any, output_dir: str | Path, images: list[str] | None = None
) -> ExportResult:
    """Export a detector and publish it only if it is the model it came from.

    Args:
        model: A detector with trained weights.
        cfg: ppdet's configuration; ``TestReader`` says how images are prepared.
        output_dir: The artefact goes to a folder with the configuration's name below it.
        images: Photographs to compare the engines on; by default the first of ``EvalDataset``,
            or of ``TestDataset`` where that does not exist.

    Raises:
        ExportError: Shapes, size or boxes of the artefact differ from the model's.
        DataError: The names of the classes are missing or do not fit.
        ConfigError: The folder cannot be written to.
    """
    class_names(cfg)  # ppdet would write others where these cannot be read
    target = require_writable(output_dir) / cfg.filename
    _require_replaceable(target)
    size_hw = image_size_hw(cfg)
    model.eval()
    model.load_meanstd(cfg["TestReader"]["sample_transforms"])
    staging = Path(tempfile.mkdtemp(prefix=f".{cfg.filename}.", dir=output_dir))
    try:
        _write(model, cfg, staging, size_hw)
        _check_shapes(model, staging)
        agreement, checked = _check_boxes(model, cfg, staging, images)
        cost = detector_cost(model, size_hw)
        size = sum((staging / name).stat().st_size for name in (MODEL_FILE, PARAMS_FILE))
        result = ExportResult(
            artifact=str(target),
            size_mb=size / 1e6,
            macs=cost.macs,
            params=cost.params,
            image_size_hw=size_hw,
            images_checked=checked,
            boxes=agreement.boxes,
            max_score_difference=agreement.max_score,
            max_pixel_difference=agreement.max_pixels,
        )
        _write_facts(model, staging, result)
        _publish(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    logger.info("%s", result)
    return result


def _write(model: paddle.nn.Layer, cfg: Any, folder: Path, size_hw: tuple[int, int]) -> None:
    model.fuse_norm = bool(cfg["TestReader"].get("fuse_normalize", False))
    save_detector(model, size_hw, folder / "model")
    (folder / "model.pdiparams.info").unlink(missing_ok=True)
    cfg["TestDataset"] = create("TestDataset")()
    if not any(arch in cfg.architecture for arch in export_utils.TRT_MIN_SUBGRAPH):
        raise ConfigError(f"architecture '{cfg.architecture}' has no deploy code in ppdet")
    level = export_utils.logger.level
    try:
        export_utils.logger.setLevel(logging.WARNING)  # it names the folder of the staging
        with quiet_stdout():
            export_utils._dump_infer_config(
                cfg, str(folder / INFER_CFG), [None, 3, *size_hw], model
            )
    finally:
        export_utils.logger.setLevel(level)


def _check_shapes(model: paddle.nn.Layer, folder: Path) -> None:
    """Every parameter of the model is in the file, with its shape, and nothing else is."""
    with deployment_program(), paddle.static.scope_guard(paddle.static.Scope()):
        executor = paddle.static.Executor(paddle.CPUPlace())
        program = paddle.static.load_inference_model(str(folder / "model"), executor)[0]
    found = {var.name: tuple(var.shape) for var in program.list_vars() if _is_weight(var)}
    expected = {param.name: tuple(param.shape) for param in model.parameters()}
    for name in expected:
        if found.get(name) != expected[name]:
            raise ExportError(
                f"the exported model differs: parameter {name} is {found.get(name)} in the file "
                f"and {expected[name]} in the model"
            )
    floats = sum(int(np.prod(shape)) for shape in found.values())
    size = (folder / PARAMS_FILE).stat().st_size
    if not floats * BYTES_PER_FLOAT <= size <= floats * BYTES_PER_FLOAT + 256 * len(found):
        raise ExportError(
            f"the exported parameters take {size} bytes, expected {floats * BYTES_PER_FLOAT} "
            f"for {len(found)} tensors"
        )


def _is_weight(var: Any) -> bool:
    return bool(var.persistable) and var.name not in ("feed", "fetch")


def _check_boxes(
    model: paddle.nn.Layer, cfg: Any, folder: Path, images: list[str] | None
) -> tuple[BoxAgreement, int]:
    """Compare the boxes of both engines on real images."""
    deployed, trained = Predictor(folder), dygraph_predictor(model)
    agreements = []
    for path, batch in image_batches(cfg, images or _default_images(cfg)):
        left, right = deployed(dict(batch)), trained(dict(batch))
        agreement = compare_boxes(left["bbox"], right["bbox"])
        if not agreement.passed:
            raise ExportError(f"the exported model finds other boxes on '{path}': {agreement}")
        agreements.append(agreement)
    return (
        BoxAgreement(
            sum(a.boxes for a in agreements),
            0,
            max(a.max_score for a in agreements),
            max(a.max_pixels for a in agreements),
        ),
        len(agreements),
    )


def image_batches(cfg: Any, images: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read images one by one as ``TestReader`` prepares them.

    Yields:
        (path, batch of one image).
    """
    dataset = create("TestDataset")()
    dataset.set_images(images)
    with quiet_stdout():
        loader = create("TestReader")(dataset, 0)
    paths = dataset.get_imid2path()
    for batch in loader:
        yield paths[int(np.asarray(batch["im_id"]).ravel()[0])], batch


def _default_images(cfg: Any) -> list[str]:
    try:
        dataset = create("EvalDataset")()
        dataset.parse_dataset()
    except (OSError, ValueError, AssertionError, KeyError) as error:
        raise ExportError(
            f"no images to compare the engines on: EvalDataset cannot be read ({error}); "
            "add --infer_img FILE or --infer_dir FOLDER"
        ) from error
    return [record["im_file"] for record in dataset.roidbs[:CHECKED_IMAGES]]


def _write_facts(model: paddle.nn.Layer, folder: Path, result: ExportResult) -> None:
    plan = plan_of(model)
    facts = {
        "schema": SCHEMA,
        "slim_det": __version__,
        "paddle": paddle.__version__,
        "engine": {"name": "paddle_inference", "onednn": True},
        "measured": {k: v for k, v in result.as_dict().items() if k != "artifact"},
        "plan": json.loads(plan.to_json()) if plan else None,
        "sha256": {name: sha256_of(folder / name) for name in (MODEL_FILE, PARAMS_FILE, INFER_CFG)},
    }
    if facts["plan"]:
        facts["plan"] = {k: facts["plan"][k] for k in ("fingerprint", "settings", "cost", "groups")}
    write_json(folder / FACTS_FILE, facts)


def _require_replaceable(target: Path) -> None:
    """An earlier artefact may be replaced; a folder with anything else in it may not."""
    known = {MODEL_FILE, PARAMS_FILE, INFER_CFG, FACTS_FILE, "model.pdiparams.info"}
    others = (
        sorted(p.name for p in target.iterdir() if p.name not in known) if target.exists() else []
    )
    if others:
        raise ExportError(
            f"'{target}' holds files that are not of an artefact ({others[0]}); "
            "choose another --output_dir"
        )


def _publish(staging: Path, target: Path) -> None:
    """Put the new folder in the place of the old one, in two renames."""
    os.chmod(staging, 0o755)
    if target.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
        os.replace(target, old / "artifact")
        os.replace(staging, target)
        shutil.rmtree(old, ignore_errors=True)
    else:
        os.replace(staging, target)

"""What ``TestReader`` becomes in an artifact.

Its steps go to ``infer_cfg.yml``; with ``fuse_normalize`` the normalisation becomes a part of the
program.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import paddle
from ppdet.core.workspace import create
from ppdet.engine import export_utils

from slim_det.core.errors import ConfigError, ExportError
from slim_det.core.silence import quiet_stdout
from slim_det.deploy.predictor import INFER_CFG, infer_settings
from slim_det.detectors.fixed_size import at_any_size
from slim_det.detectors.image_size import OPEN_HW, has_open_size, with_size
from slim_det.detectors.single_images import images_at_once
from slim_det.evaluate.images import image_batches
from slim_det.evaluate.preprocess import INPUTS, STEPS, ArtifactReader
from slim_det.evaluate.tensor_agreement import TensorAgreement, compare_tensors
from slim_det.graph.normalization import Normalization, write_normalization
from slim_det.graph.program import DeployProgram
from slim_det.graph.trace import trace_program

logger = logging.getLogger("slim_det")

IMAGE_TOLERANCE = 1e-5
"""Largest allowed difference of a prepared pixel, absolute or as a share of the largest value."""

_TEST_IMAGE_HW = (157, 211)
"""Odd, so that every step shows."""


def write_settings(cfg: Any, target_hw: tuple[int, int], folder: Path) -> None:
    """Write ``infer_cfg.yml`` of a detector, as ppdet does; its configuration is left unchanged.

    Args:
        cfg: ppdet's configuration.
        target_hw: Height and width in pixels that images are resized to, or into if they keep their
            ratio.
        folder: An existing folder.

    Raises:
        ConfigError: ppdet's deploy code does not know the architecture.
    """
    if not any(arch in cfg.architecture for arch in export_utils.TRT_MIN_SUBGRAPH):
        raise ConfigError(f"architecture '{cfg.architecture}' has no deploy code in ppdet")
    settings = cfg.copy()
    reader = copy.deepcopy({"sample_transforms": [], **cfg["TestReader"]})
    reader["fuse_normalize"] = fused_normalization(cfg) is not None
    settings["TestReader"] = reader  # ppdet writes the size to it
    reader["sample_transforms"] = with_size(reader["sample_transforms"], target_hw)
    shape = [None, 3, *(OPEN_HW if has_open_size(cfg) else target_hw)]
    settings["TestDataset"] = create("TestDataset")()
    level = export_utils.logger.level
    try:
        export_utils.logger.setLevel(logging.WARNING)  # its messages name a temporary folder
        with quiet_stdout():
            path = str(folder / INFER_CFG)
            export_utils._dump_infer_config(settings, path, shape, None)
    finally:
        export_utils.logger.setLevel(level)


def deploy_settings(cfg: Any, target_hw: tuple[int, int]) -> dict[str, Any]:
    """The content that ``infer_cfg.yml`` of a detector will have; arguments as `write_settings`."""
    with tempfile.TemporaryDirectory(prefix="slim_det_settings_") as folder:
        write_settings(cfg, target_hw, Path(folder))
        return infer_settings(folder)


def fused_normalization(cfg: Any) -> Normalization | None:
    """The normalisation that is part of the program; None without ``TestReader.fuse_normalize``.

    It also stays outside if ``TestReader`` pads the normalised image: a program would normalise the
    zeros of the padding too, which the detector was not trained with.

    Raises:
        ConfigError: It is no truth value, or ``TestReader`` does not normalise.
    """
    reader = cfg.get("TestReader") or {}
    fused = reader.get("fuse_normalize", False)
    if not isinstance(fused, bool):
        raise ConfigError(f"TestReader.fuse_normalize: {fused!r}; expected true or false")
    if not fused:
        return None
    steps = reader.get("sample_transforms") or []
    if not any("NormalizeImage" in step for step in steps):
        raise ConfigError(
            "TestReader.fuse_normalize: true, and its sample_transforms have no NormalizeImage; "
            "expected one, or fuse_normalize: false"
        )
    return None if _pads_last(_steps(reader)) else Normalization.of_steps(steps)


def _pads_last(steps: list[dict[str, Any]]) -> bool:
    """Whether a reader pads the normalised image."""
    names = [name for step in steps for name in step]
    after = names[names.index("NormalizeImage") :]
    return "Pad" in after or "PadBatch" in after


def deployed_program(
    model: paddle.nn.Layer, image_size_hw: tuple[int, int], normalization: Normalization | None
) -> DeployProgram:
    """A detector in float, from the image that ``infer_cfg.yml`` prepares to boxes.

    Args:
        model: The detector.
        image_size_hw: Height and width in pixels; `OPEN_HW` for images of any size.
        normalization: What the program does to images first, see `fused_normalization`.
    """
    any_size = at_any_size(model) if image_size_hw == OPEN_HW else contextlib.nullcontext()
    with any_size:
        program = trace_program(model, image_size_hw, images_at_once(model))
        if any(op.type == "while" for op in program.ops):
            # A loop over images. An engine cannot join its results, if they are of different kinds
            # or empty.
            program = trace_program(model, image_size_hw, batch=1)
    if normalization is not None:
        write_normalization(program, normalization)
    return program


def check_test_reader(cfg: Any, target_hw: tuple[int, int]) -> None:
    """Check that a detector will read the same images when deployed as when evaluated.

    Args:
        cfg: ppdet's configuration.
        target_hw: As of `write_settings`.

    Raises:
        ConfigError: ``TestReader`` does not normalise as ``EvalReader`` does, if there is one, or
            does not resize.
        ExportError: ``infer_cfg.yml`` cannot say what ``TestReader`` does.
    """
    _check_readers(cfg)
    settings = deploy_settings(cfg, target_hw)
    if not any(step["type"] in ("Resize", "WarpAffine") for step in settings["Preprocess"]):
        raise ConfigError(
            "TestReader has no Resize or WarpAffine; expected one in its sample_transforms: a "
            f"program takes images of one size, here {target_hw[0]}x{target_hw[1]}"
        )
    check_preprocessing(cfg, settings, fused_normalization(cfg), target_hw)


def _check_readers(cfg: Any) -> None:
    """Compare ``TestReader`` with ``EvalReader``, by which the model is judged."""
    steps = {name: _steps(cfg.get(name) or {}) for name in ("EvalReader", "TestReader")}
    if not all(steps.values()):
        return
    ours, theirs = (Normalization.of_steps(part) for part in steps.values())
    if not ours.agrees_with(theirs):
        raise ConfigError(
            f"TestReader does not normalise images as EvalReader does (pixels of 0 and 255 become "
            f"{theirs}, and {ours} in EvalReader); expected the same NormalizeImage"
        )
    resizes = {name: _resize(part) for name, part in steps.items() if _resize(part)}
    for key, default in (("interp", cv2.INTER_LINEAR), ("keep_ratio", False)):
        found = {name: settings.get(key, default) for name, settings in resizes.items()}
        if len(set(found.values())) > 1:
            logger.warning(
                "TestReader resizes with %s: %s, EvalReader with %s; AP of the artifact may be "
                "another than the model's",
                key,
                found["TestReader"],
                found["EvalReader"],
            )


def check_preprocessing(
    cfg: Any,
    settings: dict[str, Any],
    inside: Normalization | None,
    target_hw: tuple[int, int],
) -> None:
    """Check on an image of noise that an artifact's reader and program do what ``TestReader`` does.

    Args:
        cfg: ppdet's configuration.
        settings: Content of ``infer_cfg.yml``.
        inside: The normalisation that the program begins with.
        target_hw: As of `write_settings`.

    Raises:
        ExportError: They do not.
    """
    reader = ArtifactReader(settings)
    with tempfile.TemporaryDirectory(prefix="slim_det_image_") as folder:
        path = str(Path(folder) / "noise.png")
        noise = np.random.default_rng(0).integers(0, 256, (*_TEST_IMAGE_HW, 3), np.uint8)
        cv2.imwrite(path, noise)
        [(_, expected)] = image_batches(cfg, [path], target_hw)
        found = compare_images(expected, reader(path), inside)
    if found.fault:
        raise ExportError(
            f"{found.fault}; expected the steps {', '.join(STEPS)} and PadBatch in TestReader"
        )


def compare_images(
    expected: dict[str, Any], found: dict[str, np.ndarray], inside: Normalization | None
) -> TensorAgreement:
    """Compare an image that an artifact reads with the one that ``TestReader`` prepares.

    Args:
        expected: Batch of ``TestReader``.
        found: Batch of `ArtifactReader`.
        inside: The normalisation that the artifact's program begins with.

    Returns:
        The agreement of image and sizes, with a fault if it exceeds `IMAGE_TOLERANCE`.
    """
    image = inside(found["image"]) if inside else found["image"]
    tensors = [image, found["im_shape"], found["scale_factor"]]
    agreement = compare_tensors(tensors, [np.asarray(expected[key]) for key in INPUTS])
    if not agreement.fault and min(agreement.max_abs, agreement.max_relative) <= IMAGE_TOLERANCE:
        return agreement
    who = f"{INFER_CFG} and the program do" if inside else f"{INFER_CFG} does"
    what = agreement.fault or f"values differ by up to {agreement.max_abs:.2g}"
    return replace(agreement, fault=f"{who} not prepare images as TestReader does ({what})")


def _steps(reader: Any) -> list[dict[str, Any]]:
    return [
        step for key in ("sample_transforms", "batch_transforms") for step in reader.get(key) or []
    ]


def _resize(steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Settings of the first ``Resize``; {} without."""
    return next((step["Resize"] or {} for step in steps if "Resize" in step), {})

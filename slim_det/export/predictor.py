"""Runs an exported model through Paddle Inference with the settings that make it fast."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from paddle import inference

from slim_det.errors import ExportError
from slim_det.files import sha256_of

MODEL_FILE = "model.pdmodel"
PARAMS_FILE = "model.pdiparams"
INFER_CFG = "infer_cfg.yml"
FACTS_FILE = "slim_det.json"
PREDICTOR_FILES = (MODEL_FILE, PARAMS_FILE, INFER_CFG)


class Predictor:
    """An exported detector.

    Args:
        folder: Folder with ``model.pdmodel``, ``model.pdiparams`` and ``infer_cfg.yml``.
        threads: CPU threads; default all cores.

    Raises:
        ExportError: A file is missing, or the model cannot be loaded.
    """

    def __init__(self, folder: str | Path, threads: int | None = None) -> None:
        self.folder = Path(folder)
        for name in PREDICTOR_FILES:
            if not (self.folder / name).is_file():
                raise ExportError(
                    f"artifact '{folder}' has no {name}; expected a folder written by export"
                )
        _check_unchanged(self.folder)
        config = engine_config(
            self.folder / MODEL_FILE, self.folder / PARAMS_FILE, threads or os.cpu_count() or 1
        )
        try:
            self._predictor = inference.create_predictor(config)
        except (RuntimeError, ValueError, LookupError, OSError) as error:
            reason = " ".join(str(error).split())[-160:]
            raise ExportError(f"artifact '{folder}' cannot be loaded: {reason}") from error
        self.settings = infer_settings(self.folder)

    @property
    def image_size_hw(self) -> tuple[int, int]:
        """Height and width that images are resized to, from the reader's settings."""
        for step in self.settings["Preprocess"]:
            if step["type"] == "Resize":
                height, width = step["target_size"]
                return int(height), int(width)
        raise ExportError(f"artifact '{self.folder}': {INFER_CFG} has no Resize")

    def __call__(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Detect on one batch.

        Args:
            batch: ``image`` float32 [B, 3, H, W], ``im_shape`` and ``scale_factor`` float32
                [B, 2], as ppdet's readers give them.

        Returns:
            ``bbox`` float32 [N, 6] (class, score, xyxy in pixels of the original image) and
            ``bbox_num`` int32 [B].
        """
        for name in self._predictor.get_input_names():
            value = np.ascontiguousarray(np.asarray(batch[name]), dtype=np.float32)
            self._predictor.get_input_handle(name).copy_from_cpu(value)
        self._predictor.run()
        outputs = [
            self._predictor.get_output_handle(name).copy_to_cpu()
            for name in self._predictor.get_output_names()
        ]
        boxes = next((o for o in outputs if o.ndim == 2), None)
        counts = next((o for o in outputs if o.ndim == 1), None)
        if boxes is None or counts is None:
            raise ExportError(f"artifact '{self.folder}' gives no boxes; was it exported with NMS?")
        return {"bbox": boxes, "bbox_num": counts}


def engine_config(model: str | Path, params: str | Path, threads: int) -> inference.Config:
    """The settings of Paddle Inference that make a float model fast on a CPU.

    Args:
        model: ``.pdmodel`` file.
        params: ``.pdiparams`` file.
        threads: CPU threads.
    """
    config = inference.Config(str(model), str(params))
    config.disable_gpu()
    config.enable_mkldnn()
    config.set_cpu_math_library_num_threads(threads)
    config.enable_memory_optim()
    config.disable_glog_info()
    return config


def _check_unchanged(folder: Path) -> None:
    """Compare model and parameters with their checksums: Paddle may crash on damaged ones."""
    path = folder / FACTS_FILE
    if not path.is_file():
        return
    try:
        checksums = json.loads(path.read_text(encoding="utf-8"))["sha256"]
        changed = [n for n in (MODEL_FILE, PARAMS_FILE) if sha256_of(folder / n) != checksums[n]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ExportError(f"'{path}' cannot be read: {error!r}") from error
    if changed:
        raise ExportError(
            f"artifact '{folder}': {changed[0]} is not the file that was exported (its SHA-256 is "
            f"not the one in {FACTS_FILE}); export again"
        )


def infer_settings(folder: str | Path) -> dict[str, Any]:
    """Read ``infer_cfg.yml`` of an exported model.

    Raises:
        ExportError: It is missing or not what PaddleDetection's deploy code reads.
    """
    path = Path(folder) / INFER_CFG
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        settings["Preprocess"], settings["label_list"]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise ExportError(f"'{path}' cannot be read: {error}") from error
    return dict(settings)

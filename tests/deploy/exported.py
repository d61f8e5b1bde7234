"""Small detectors with their artifacts, written from one trace as an exporter would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paddle
import yaml

from slim_det.compress.images import calibration_images
from slim_det.compress.quantize.calibrate import collect
from slim_det.compress.quantize.model import program_ranges, quantize_model
from slim_det.compress.quantize.observers import input_range
from slim_det.compress.quantize.quantizable_layers import find_quantizable_layers
from slim_det.compress.quantize.record import QuantRecord, record_of
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.compress.steps import steps_of
from slim_det.core.files import sha256_of, write_json
from slim_det.demo import CLASS_NAMES
from slim_det.detectors.image_size import image_size_hw
from slim_det.graph.folding import fold_batch_norm
from slim_det.graph.int8_program import write_int8
from slim_det.graph.program import DeployProgram
from slim_det.graph.trace import trace_detector, trace_program
from slim_det.training import checkpoint, session
from slim_det.training.config import load_config
from tests.support import restored_config


@dataclass(frozen=True)
class Exported:
    """A model and its artifact.

    Attributes:
        config: Configuration of the detector.
        weights: Stem of the model's checkpoint.
        artifact: Folder.
    """

    config: Path
    weights: Path
    artifact: Path

    def load(self) -> tuple[Any, paddle.nn.Layer]:
        """Configuration and model; call it where the configuration is restored."""
        cfg = load_config(self.config)
        return cfg, session.model_with_weights(cfg, str(self.weights))


class _NoOptimizer:
    def state_dict(self) -> dict[str, Any]:
        return {}


def record_for(config: Path) -> QuantRecord:
    """What is quantized in a detector, pruned or not."""
    with restored_config():
        cfg = load_config(config)
        model = session.build_model(cfg)
        settings = QuantSettings()
        found = find_quantizable_layers(model, trace_detector(model, image_size_hw(cfg)), settings)
        return QuantRecord(settings, found.layers, found.kept_float)


def export_pair(
    folder: Path, config: Path, record: QuantRecord, slim: Path | None = None
) -> tuple[Exported, Exported]:
    """Export the model of a configuration in float, and quantized with ranges of four images.

    Args:
        folder: A new folder.
        config: Names the weights.
        record: Which layers are quantized.
        slim: Slim file to prune by first.
    """
    with restored_config():
        cfg = load_config(config)
        strategies = session.read_slim(str(slim)) if slim else None
        model = session.model_with_weights(cfg, cfg.weights, strategies)
        program = trace_program(model, image_size_hw(cfg))
        exact = _export(folder / "float", config, cfg, model, program)
        statistics = collect(model, record.layers, cfg, calibration_images(4)[1])
        ranges = {name: input_range("abs_max", found, 8) for name, found in statistics.items()}
        quantize_model(model, record, ranges)
        fold_batch_norm(program)
        write_int8(program, program_ranges(model))
        return exact, _export(folder / "int8", config, cfg, model, program)


def _export(
    folder: Path, config: Path, cfg: Any, model: paddle.nn.Layer, program: DeployProgram
) -> Exported:
    stem, artifact = folder / "weights", folder / "artifact"
    artifact.mkdir(parents=True)
    record = record_of(model)
    checkpoint.save(stem, model.state_dict(), _NoOptimizer(), 0, steps_of(model))
    program.save(artifact / "model")
    _write_settings(artifact / "infer_cfg.yml", cfg["TestReader"]["sample_transforms"])
    names = ("model.pdmodel", "model.pdiparams", "infer_cfg.yml")
    manifest = {
        "engine": {"name": "paddle_inference", "onednn": True, "int8": record is not None},
        "sha256": {name: sha256_of(artifact / name) for name in names},
    }
    write_json(artifact / "slim_det.json", manifest)
    return Exported(config, stem, artifact)


def _write_settings(path: Path, transforms: Sequence[dict[str, Any]]) -> None:
    steps = [{"type": kind, **dict(s or {})} for step in transforms for kind, s in step.items()]
    steps = [step for step in steps if step["type"] != "Decode"]
    settings = {"arch": "YOLO", "Preprocess": steps, "label_list": list(CLASS_NAMES)}
    path.write_text(yaml.safe_dump(settings))

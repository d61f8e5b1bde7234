"""Artifacts as a faulty exporter would write them: changed, and with checksums that fit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from slim_det.core.files import sha256_of
from slim_det.graph.normalization import Normalization, write_normalization
from slim_det.graph.program import DeployProgram

Change = Callable[[DeployProgram], None]


def changed_program(artifact: Path, target: Path, change: Change) -> Path:
    """A copy whose program was changed."""
    shutil.copytree(artifact, target)
    program = DeployProgram.load(target / "model")
    change(program)
    program.save(target / "model")
    (target / "model.pdiparams.info").unlink(missing_ok=True)
    return _signed(target)


def changed_settings(artifact: Path, target: Path, change: Callable[[Any], None]) -> Path:
    """A copy whose ``infer_cfg.yml`` was changed."""
    shutil.copytree(artifact, target)
    path = target / "infer_cfg.yml"
    settings = yaml.safe_load(path.read_text())
    change(settings)
    path.write_text(yaml.safe_dump(settings))
    return _signed(target)


def weight_names(program: DeployProgram) -> list[str]:
    """The stored weights of all convolutions, in order."""
    return [program.stored_weight(op) for op in program.convolutions]


def change_nothing(program: DeployProgram) -> None:
    """Reading and writing alone must not be reported as a fault."""


def swap_output_channels(program: DeployProgram) -> None:
    """Two output channels of one convolution change places, with all that belongs to them."""
    name = weight_names(program)[4]
    for stored in (name, f"{name}.scale"):
        if stored in program.block.vars:
            value = program.value(stored)
            value[[0, 1]] = value[[1, 0]]
            program.set_value(stored, value)


def zero_bias(program: DeployProgram) -> None:
    """The bias of one channel group is lost: of a batch norm, or of what it was folded into."""
    folded = f"{weight_names(program)[3]}.folded_bias"
    norms = [op for op in program.block.ops if op.type == "batch_norm"]
    name = folded if folded in program.block.vars else norms[3].input("Bias")[0]
    program.set_value(name, np.zeros_like(program.value(name)))


def swap_image_channels(program: DeployProgram) -> None:
    """The first convolution reads BGR."""
    name = weight_names(program)[0]
    program.set_value(name, np.ascontiguousarray(program.value(name)[:, ::-1]))


def double_weight_scale(program: DeployProgram) -> None:
    """The integers of one weight mean twice their values."""
    name = next(n for n in weight_names(program)[3:] if f"{n}.scale" in program.block.vars)
    program.set_value(f"{name}.scale", 2 * program.value(f"{name}.scale"))


def double_input_scale(program: DeployProgram) -> None:
    """One input is rounded to half as many steps."""
    op = [op for op in program.block.ops if op.type == "quantize_linear"][3]
    name = op.input("Scale")[0]
    program.set_value(name, 2 * program.value(name))


def normalize_twice(settings: Any) -> None:
    """Images are normalized once more."""
    steps = settings["Preprocess"]
    place = next(i for i, step in enumerate(steps) if step["type"] == "NormalizeImage")
    steps.insert(place, steps[place])


def swap_mean_and_deviation(settings: Any) -> None:
    """Red and blue are normalized with each other's mean, as for BGR."""
    step = next(step for step in settings["Preprocess"] if step["type"] == "NormalizeImage")
    step["mean"] = step["mean"][::-1]


def normalize_nowhere(settings: Any) -> None:
    """As if the program did it."""
    settings["Preprocess"] = [s for s in settings["Preprocess"] if s["type"] != "NormalizeImage"]


def normalize_inside(program: DeployProgram) -> None:
    """As if ``infer_cfg.yml`` did not."""
    write_normalization(program, Normalization.of_steps([{"NormalizeImage": {}}]))


def _signed(folder: Path) -> Path:
    path = folder / "slim_det.json"
    manifest = json.loads(path.read_text())
    manifest["sha256"] = {name: sha256_of(folder / name) for name in manifest["sha256"]}
    path.write_text(json.dumps(manifest))
    return folder

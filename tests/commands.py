"""Commands in processes of their own, the files they leave, and a configuration for them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support import ROOT

CONFIGS = ROOT / "configs" / "yolov3"
IMAGE_SIDE = 96


@dataclass(frozen=True)
class Outcome:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str


def command(
    *arguments: Any, cwd: Path, script: Path | None = None, timeout_s: int = 300, **variables: str
) -> Outcome:
    """Run `slim-det ARGUMENTS` in a process of its own, or a script through `slim_det`."""
    program = ["slim_det", str(script)] if script else ["slim_det.cli"]
    done = subprocess.run(
        [sys.executable, "-m", *program, *map(str, arguments)],
        cwd=cwd,
        env=process_environment(**variables),
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def done(run: Outcome) -> Outcome:
    """The outcome itself; fails unless the exit code is 0."""
    assert run.code == 0, run.err + run.out
    return run


def process_environment(**variables: str) -> dict[str, str]:
    """This process's environment, with the checkout importable."""
    return {**os.environ, "PYTHONPATH": str(ROOT), **variables}


def files_below(folder: Path) -> dict[str, str]:
    """Every file and folder below a folder by relative name, files with a hash."""
    return {
        path.relative_to(folder).as_posix(): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        )
        for path in sorted(folder.rglob("*"))
    }


def write_tiny(path: Path, shapes: Path, **changes: Any) -> Path:
    """Write a configuration of the shapes detector at 96 pixels, one epoch of two steps."""
    base = yaml.safe_load((CONFIGS / "shapes.yml").read_text(encoding="utf-8"))
    train, test = base["TrainReader"], base["TestReader"]
    train["sample_transforms"] = [{"Decode": {}}, {"RandomFlip": {}}]
    train["batch_transforms"][0]["BatchRandomResize"]["target_size"] = [IMAGE_SIDE]
    test["sample_transforms"][1]["Resize"]["target_size"] = [IMAGE_SIDE, IMAGE_SIDE]
    content = {
        "_BASE_": [str(CONFIGS / "shapes.yml")],
        "weights": "",
        "YOLOv3": {"backbone": "MobileNet", "neck": "ScaledYOLOv3FPN"},
        "MobileNet": {
            "scale": 0.25,
            "feature_maps": [4, 6, 13],
            "with_extra_blocks": False,
            "extra_block_filters": [],
        },
        "ScaledYOLOv3FPN": {"width": 0.25},
        "OptimizerBuilder": {"optimizer": {"type": "Momentum", "momentum": 0.9}},
        "save_dir": "saved",
        "worker_num": 0,
        "epoch": 1,
        "snapshot_epoch": 1,
        "log_iter": 1,
        **{f"{part}Dataset": {"dataset_dir": str(shapes)} for part in ("Train", "Eval", "Test")},
        "TrainReader": {**train, "batch_size": 8},
        "EvalReader": {"sample_transforms": test["sample_transforms"], "batch_size": 4},
        "TestReader": {**test, "inputs_def": {"image_shape": [3, IMAGE_SIDE, IMAGE_SIDE]}},
        **changes,
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def lines_of(path: Path) -> list[bytes]:
    """The lines of a file; none if it does not exist."""
    return path.read_bytes().splitlines() if path.exists() else []

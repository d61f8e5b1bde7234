"""Post-training quantization through the command: what is written is complete and sound."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slim_det.compress.quantize.record import QuantRecord
from slim_det.compress.strategy import step_path
from slim_det.deploy.predictor import PREDICTOR_FILES, Predictor
from slim_det.training.checkpoint import stored_step
from tests.commands import files_below
from tests.forks import Forks
from tests.trained import Detector

QUICK = ("--no_eval", "--images", 1)


def visible(folder: Path) -> list[str]:
    """Names of what is no temporary file or folder."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def check_complete(artifact: Path, stem: Path) -> None:
    """Both are complete: the artifact's hashes are compared when it is loaded."""
    assert set(PREDICTOR_FILES) < set(visible(artifact))
    assert Predictor(artifact).settings["Preprocess"]
    assert len(stored_step(str(stem), QuantRecord).layers) == 47


def test_model_that_collapsed(forks: Forks, detector: Detector, tmp_path: Path) -> None:
    """So thin a detector finds next to nothing in int8: neither file nor weights are left."""
    folders = ("--output_dir", tmp_path / "out", "--save_dir", tmp_path / "saved")
    calibration = ("--images", 1, "--observer", "abs_max", "--max_gap", 100)
    assert forks.run("quantize", "-c", detector.config, *calibration, *folders) == 2
    lines = [line for line in forks.error().splitlines() if "error:" in line]
    assert len(lines) == 1 and "in float: more than half is lost, so nothing is saved" in lines[0]
    assert files_below(tmp_path) == {}


@pytest.mark.slow
def test_killed_ten_times(forks: Forks, tiny: Path, unpruned: Path, tmp_path: Path) -> None:
    """The old artifact and weights are complete, or the new ones."""
    out, saved = tmp_path / "out", tmp_path / "saved"
    artifact, stem = out / "tiny", saved / "tiny" / "quantized"
    command: tuple[Any, ...] = (
        *("quantize", "-c", tiny, *QUICK, "--output_dir", out, "--save_dir", saved),
        *("-o", f"weights={unpruned}"),
    )
    begin = time.monotonic()
    assert forks.run(*command) == 0, forks.error()
    lasts = time.monotonic() - begin
    check_complete(artifact, stem)
    first = step_path(stem, QuantRecord).read_text()
    times = random.Random(0)
    for _ in range(10):
        moment = after(times.uniform(0.3, 1.0) * lasts)
        code = forks.run(*command, "--observer", "abs_max", until=moment)
        assert code in (0, -signal.SIGKILL), forks.error()
        check_complete(artifact, stem)
        assert visible(out) == ["tiny"]
    assert forks.run(*command, "--observer", "abs_max") == 0, forks.error()
    assert step_path(stem, QuantRecord).read_text() != first
    check_complete(artifact, stem)

"""The demo, as `make demo` runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def run_demo(folder):
    command = [sys.executable, "-m", "slim_det.cli", "demo"]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=_environment(), check=False
    )


def _environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_the_demo_needs_the_configurations(tmp_path):
    done = run_demo(tmp_path)
    assert done.returncode == 2
    assert "configs/yolov3/shapes.yml" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_the_demo_trains_prunes_and_measures(tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    done = run_demo(tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    figures = json.loads((tmp_path / "output/demo/demo.json").read_text())
    base, cut = figures["rows"]
    assert base["ap50"] > 0.5
    assert cut["macs"] < 0.65 * base["macs"]
    assert cut["size_mb"] < 0.65 * base["size_mb"]
    assert cut["speedup"] > 1.0
    assert cut["ap50"] > figures["cut_only"]["ap50"]
    with Image.open(tmp_path / "output/demo/demo.png") as picture:
        assert picture.width > picture.height

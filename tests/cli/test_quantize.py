"""`slim-det quantize`: what it refuses, and what it leaves behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from slim_det.compress.quantize.model import ranges_of
from slim_det.compress.quantize.record import QuantLayer, QuantRecord
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.compress.strategy import step_path
from tests.commands import Outcome
from tests.support import restored_config

Refused = Callable[..., str]


@pytest.fixture
def run(tiny: Path, unpruned: Path) -> tuple[Any, ...]:
    """Arguments of `quantize` on untrained weights of the tiny detector."""
    return ("quantize", "-c", tiny, "-o", f"weights={unpruned}")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--observer", "histt"], "--observer: unknown observer 'histt'; did you mean 'hist'?"),
        (["--images", 0], "--images: 0 is not valid; expected a whole number of images"),
        (["--images", -3], "--images: -3 is not valid"),
        (["--images", 17], "TrainDataset has 16 images, 17 are asked for (--images)"),
        (["--weight_type", "channel"], "--weight_type: unknown type 'channel'"),
        (["--skip", "nowhere.*"], "skip: no layer matches 'nowhere.*'"),
        (["--max_drop", -1], "--max_drop -1: expected points of the metric, 0 to 100"),
        (
            ["--max_drop", 1, "--no_eval"],
            "--max_drop needs the metric: it cannot be combined with --no_eval",
        ),
    ],
)
def test_flags_that_cannot_be(
    refused: Refused, run: tuple[Any, ...], flags: list[Any], said: str
) -> None:
    assert said in refused(*run, *flags)


def test_weights_that_are_not_there(refused: Refused, tiny: Path) -> None:
    assert "no weights are given" in refused("quantize", "-c", tiny)
    line = refused("quantize", "-c", tiny, "-o", "weights=gone")
    assert "weights 'gone.pdparams' do not exist" in line


def test_weights_that_are_quantized_already(
    refused: Refused, tiny: Path, unpruned: Path, tmp_path: Path
) -> None:
    stem = tmp_path / "int8"
    shutil.copy(f"{unpruned}.pdparams", f"{stem}.pdparams")
    record = QuantRecord(QuantSettings(), [QuantLayer("backbone.conv1", "")], {})
    step_path(stem, QuantRecord).write_text(record.to_json())
    line = refused("quantize", "-c", tiny, "-o", f"weights={stem}", "--images", 1)
    assert f"'{stem}' are quantized already; expected float weights" in line


def test_slim_files_of_another_kind(refused: Refused, run: tuple[Any, ...], r578: Path) -> None:
    assert "expected slim: PTQ" in refused(*run, "--slim_config", r578)


def test_what_is_left_behind(
    cli: Callable[..., Outcome], tiny: Path, unpruned: Path, run: tuple[Any, ...], tmp_path: Path
) -> None:
    """Artifact, weights with their record, and figures; flags win over the slim file."""
    slim = tmp_path / "ptq.yml"
    described = {"ptq_config": {"activation_quantizer": "HistQuantizer"}, "quant_batch_num": 99}
    slim.write_text(yaml.safe_dump({"slim": "PTQ", "PTQ": described}))
    outcome = cli(
        *(*run, "--slim_config", slim, "--observer", "avg", "--images", 3, "--no_eval"),
        *("--bias_correction", "--skip", "neck.yolo_block.0.tip", "--report"),
        *("--output_dir", tmp_path / "out", "--save_dir", tmp_path / "saved"),
        *("--json", tmp_path / "figures.json"),
    )
    assert outcome.code == 0, outcome.err + outcome.out
    assert "SQNR dB" in outcome.out and "named in 'skip'" in outcome.out
    figures = json.loads((tmp_path / "figures.json").read_text())
    stem = tmp_path / "saved" / "tiny" / "quantized"
    assert figures["checkpoint"] == f"{stem}.pdparams"
    assert figures["artifact"] == str(tmp_path / "out" / "tiny")
    assert (tmp_path / "out" / "tiny" / "model.pdiparams").is_file()
    assert (figures["observer"], figures["images"]) == ("avg", 3)
    assert figures["ap"] is figures["ap_float"] is figures["drop"] is None
    assert "neck.yolo_block.0.tip" in figures["layers_float"]
    assert {row["precision"] for row in figures["layers"]} == {"int8", "float32"}
    record = QuantRecord.read(step_path(stem, QuantRecord))
    assert record.origin["bias_correction"] and record.origin["observer"] == "avg"
    assert len(figures["layers"]) == len(record.layers) + len(record.kept_float)
    rows = [row["input_range"] for row in figures["layers"] if row["precision"] == "int8"]
    assert rows == pytest.approx(_ranges(tiny, stem))


def _ranges(config: Path, stem: Path) -> list[float]:
    """Input ranges of a checkpoint, loaded as every command loads it."""
    from slim_det.training import session
    from slim_det.training.config import load_config

    with restored_config():
        model = session.model_with_weights(load_config(config), str(stem))
        found = [float(scales.input_range) for scales in ranges_of(model).values()]
    assert np.isfinite(found).all()
    return found

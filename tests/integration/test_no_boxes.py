"""A detector that finds nothing at all: AP 0 in training and evaluation, for both metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import Outcome

SILENT = ("BBoxPostProcess.nms.score_threshold=2.0",)


@pytest.mark.parametrize("metric", ["COCO", "VOC"])
def test_training_goes_on(
    cli: Callable[..., Outcome], tiny: Path, tiny_voc: Path, r578: Path, tmp_path: Path, metric: str
) -> None:
    """Two epochs, each evaluated, each as good as the best; then an evaluation by itself."""
    config = tiny if metric == "COCO" else tiny_voc
    saved = f"save_dir={tmp_path}"
    run = cli(
        *("train", "-c", config, "--slim_config", r578, "--eval"),
        *("-o", *SILENT, saved, "epoch=2"),
    )
    assert run.code == 0, run.err
    assert run.out.count("slim_det: AP 0.0000, best so far 0.0000") == 2
    best = json.loads((tmp_path / config.stem / "best_model.json").read_text())
    assert best == {"ap": 0.0, "epoch": 1}
    figures = tmp_path / "eval.json"
    weights = f"weights={tmp_path / config.stem / 'best_model'}"
    run = cli("eval", "-c", config, "-o", *SILENT, weights, "--json", figures)
    assert run.code == 0, run.err
    result = json.loads(figures.read_text())
    assert result["ap"] == 0.0 and set(result["per_class"].values()) == {0.0}
    assert result["metric"] == ("coco_ap" if metric == "COCO" else "voc_map_11point")


def test_nothing_to_draw(
    cli: Callable[..., Outcome], tiny: Path, unpruned: Path, shapes: Path, tmp_path: Path
) -> None:
    """The picture is written all the same, and export has nothing to disagree on."""
    image = sorted((shapes / "images").iterdir())[0]
    weights = f"weights={unpruned}"
    drawn = ("--infer_img", image, "--output_dir", tmp_path, "--json", tmp_path / "b.json")
    run = cli("infer", "-c", tiny, *drawn, "-o", *SILENT, weights)
    assert run.code == 0, run.err
    assert json.loads((tmp_path / "b.json").read_text())["images"][0]["boxes"] == []
    assert (tmp_path / image.name).is_file()
    run = cli("export", "-c", tiny, "--output_dir", tmp_path / "out", "-o", *SILENT, weights)
    assert run.code == 0, run.err
    artifact = ("--artifact", tmp_path / "out" / "tiny")
    run = cli("eval", "-c", tiny, *artifact, "-o", *SILENT)
    assert run.code == 0, run.err
    assert "coco_ap 0.0000 on 6 images" in run.out

"""A detector of faces from training to the file that is shipped, measured all along."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slim_det.evaluate import multi_scale
from slim_det.training.config import load_config
from tests.blazeface import draw_faces, write_blazeface
from tests.commands import Outcome


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration of BlazeFace that trains on a few drawn faces."""
    folder = tmp_path_factory.mktemp("faces")
    return write_blazeface(folder / "face.yml", draw_faces(folder / "set"))


SILENT = "BBoxPostProcess.nms.score_threshold=2.0"


@pytest.mark.parametrize("found", [[], [SILENT]])
def test_training_goes_on_after_each_evaluation(
    cli: Callable[..., Outcome], config: Path, tmp_path: Path, found: list[str]
) -> None:
    """Two epochs, each measured, the best one kept; also where nothing at all is found."""
    run = cli("train", "-c", config, "--eval", "-o", f"save_dir={tmp_path}", "epoch=2", *found)
    assert run.code == 0, run.err
    assert run.out.count("slim_det: widerface_ap 0.") == 2
    assert run.out.count("best so far") == 2
    best = json.loads((tmp_path / "face" / "best_model.json").read_text())
    assert 0 <= best["ap"] <= 1 and set(best) == {"ap", "epoch"}
    assert (tmp_path / "face" / "model_final.pdparams").is_file()
    figures = tmp_path / "eval.json"
    weights = f"weights={tmp_path / 'face' / 'best_model'}"
    run = cli("eval", "-c", config, "--json", figures, "-o", weights, *found)
    assert run.code == 0, run.err
    assert json.loads(figures.read_text())["ap"] == pytest.approx(best["ap"], abs=1e-6)


def test_trainer_evaluates_and_returns(
    cli: Callable[..., Outcome],
    fresh_config: Any,
    config: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As PaddleDetection's own script does it; nothing appears in the working folder."""
    run = cli("train", "-c", config, "-o", f"save_dir={tmp_path}")
    assert run.code == 0, run.err
    from ppdet.engine import Trainer

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(multi_scale, "MAX_PIXELS", 4 * 120 * 140)
    before = sorted(tmp_path.rglob("*"))
    cfg = load_config(config)
    found = {}
    for several in (False, True):
        cfg["multi_scale_eval"] = several
        trainer = Trainer(cfg, mode="eval")
        trainer.load_weights(str(tmp_path / "face" / "model_final"))
        metric = trainer._metrics[0]
        monkeypatch.setattr(metric, "reset", lambda: None)
        trainer.evaluate()
        found[several] = metric.get_results()["widerface"]
        assert len(found[several]) == 4
    assert found[False] != found[True]
    assert sorted(tmp_path.rglob("*")) == before


def test_artifact_is_as_good_as_the_model(
    cli: Callable[..., Outcome], config: Path, tmp_path: Path
) -> None:
    run = cli("train", "-c", config, "-o", f"save_dir={tmp_path}")
    assert run.code == 0, run.err
    weights = ("-o", f"weights={tmp_path / 'face' / 'model_final'}")
    run = cli("export", "-c", config, "--output_dir", tmp_path / "out", *weights)
    assert run.code == 0, run.err
    values = []
    for number, extra in enumerate(((), ("--artifact", tmp_path / "out" / "face"))):
        target = tmp_path / f"{number}.json"
        run = cli("eval", "-c", config, "--json", target, *extra, *weights)
        assert run.code == 0, run.err
        values.append(json.loads(target.read_text()))
    assert values[1]["engine"] == "paddle_inference"
    assert values[1]["per_class"] == pytest.approx(values[0]["per_class"], abs=5e-3)

"""`slim-det eval` of a detector of faces: its flags, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paddle
import pytest

from slim_det.evaluate import multi_scale
from slim_det.training import session
from slim_det.training.config import load_config
from tests.blazeface import draw_faces, write_blazeface
from tests.commands import Outcome
from tests.support import restored_config

Refused = Callable[..., str]


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn data set of faces in WIDER FACE's layout."""
    return draw_faces(tmp_path_factory.mktemp("faces") / "set")


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, faces: Path, ppdet_registered: None) -> Path:
    """A configuration, with untrained weights beside it that it names."""
    folder = tmp_path_factory.mktemp("config")
    path = write_blazeface(folder / "face.yml", faces, weights=str(folder / "face"))
    with restored_config():
        paddle.seed(0)
        paddle.save(session.build_model(load_config(path)).state_dict(), f"{folder}/face.pdparams")
    return path


def figures(run: Outcome, path: Path) -> dict[str, Any]:
    assert run.code == 0, run.err
    return json.loads(path.read_text())


def test_checkpoint_and_its_predictions(
    cli: Callable[..., Outcome], config: Path, faces: Path, tmp_path: Path
) -> None:
    """What is written scores the same by itself."""
    pred, own, again = tmp_path / "pred", tmp_path / "own.json", tmp_path / "again.json"
    run = cli("eval", "-c", config, "--save_pred", pred, "--json", own)
    result = figures(run, own)
    assert result["metric"] == "widerface_ap" and result["bands"] == "height>=50/30/10 px"
    assert set(result["per_class"]) == {"easy", "medium", "hard"} and result["num_images"] == 6
    assert result["ap"] == pytest.approx(sum(result["per_class"].values()) / 3)
    assert "; height>=50/30/10 px); " in run.out
    run = cli("widerface", "--pred", pred, "--ground_truth", faces / "val.txt", "--json", again)
    alone = figures(run, again)
    assert {key: alone[key] for key in result["per_class"]} == pytest.approx(result["per_class"])


def test_several_scales(
    cli: Callable[..., Outcome], config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the flag or by PaddleDetection's key."""
    monkeypatch.setattr(multi_scale, "MAX_PIXELS", 4 * 120 * 140)
    few = ("-o", "EvalDataset.sample_num=1")
    for number, extra in enumerate((["--multi_scale", *few], [*few, "multi_scale_eval=true"])):
        target = tmp_path / f"{number}.json"
        result = figures(cli("eval", "-c", config, "--json", target, *extra), target)
        assert result["engine"] == "dygraph_multi_scale" and result["num_images"] == 1
        assert result["bands"].endswith(", 1 of 6 images")


def test_flags_that_do_not_fit(refused: Refused, config: Path, tiny: Path, faces: Path) -> None:
    for flag in ("--ground_truth", "--save_pred"):
        line = refused("eval", "-c", tiny, flag, faces / "val.txt")
        assert f"{flag} needs metric: WiderFace; the configuration has metric: COCO" in line
    line = refused("eval", "-c", tiny, "--multi_scale")
    assert "--multi_scale needs metric: WiderFace" in line
    line = refused("eval", "-c", config, "--multi_scale", "--artifact", "gone")
    assert "--multi_scale: the artifact 'gone' accepts only one image size" in line


def test_data_that_do_not_fit(
    refused: Refused, config: Path, tiny: Path, faces: Path, tmp_path: Path
) -> None:
    line = refused("eval", "-c", tiny, "-o", "metric=WiderFace")
    assert "metric WiderFace does not fit a COCODataSet; use COCO" in line
    line = refused("eval", "-c", config, "-o", "metric=COCO")
    assert "metric COCO does not fit a WIDERFaceDataSet; use WiderFace" in line
    line = refused("eval", "-c", config, "--ground_truth", faces / "train.txt")
    assert "image '0--val/face_0' is not in the ground truth" in line
    line = refused("eval", "-c", config, "--ground_truth", faces / "images")
    assert f"ground truth '{faces}/images' lacks wider_face_val.mat" in line


def test_folder_for_predictions(refused: Refused, config: Path, tmp_path: Path) -> None:
    """Nothing that lies there is mixed with predictions, nor is a folder left behind."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "a.png").write_text("mine")
    line = refused("eval", "-c", config, "--save_pred", tmp_path / "own")
    assert "holds 'a.png', not a prediction of these images" in line
    lost = ("-o", "EvalReader.sample_transforms=[]", "multi_scale_eval=true")
    line = refused("eval", "-c", config, "--save_pred", tmp_path / "new", *lost)
    assert "EvalReader has no NormalizeImage" in line

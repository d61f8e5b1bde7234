"""A detector of faces on the way of every other: cut, measured, quantized, shipped, verified."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import pytest

from slim_det.deploy.lite.convert import has_paddlelite
from tests.blazeface import SHALLOW, lively_blazeface
from tests.forks import Forks

HEAD = [f"blaze_head.{name}{scale}" for scale in range(2) for name in ("boxes", "scores")]
QAT = "QAT: {calibration_images: 8}"
WIDE = ("--max_gap", 10)  # points of AP: one of the few faces is several
PRUNER = "Pruner: {criterion: l1_norm, pruned_params: all, pruned_ratios: 0.3}"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory, ppdet_registered: None) -> Path:
    """A shallow BlazeFace with an AP of 1; the configuration names its weights."""
    return lively_blazeface(tmp_path_factory.mktemp("face") / "detector", **SHALLOW)


@pytest.fixture(scope="module")
def cut(config: Path) -> Path:
    """A slim file that prunes 30 % of every group."""
    path = config.with_name("cut.yml")
    path.write_text(f"slim: Pruner\n{PRUNER}\n")
    return path


def run(forks: Forks, *arguments: Any) -> dict[str, Any]:
    """Run a command that has to go well; its figures."""
    figures = forks.folder / "figures.json"
    assert forks.run(*arguments, "--json", figures) == 0, forks.error()
    return json.loads(figures.read_text())


def image_of(config: Path) -> Path:
    return sorted((config.parent / "set" / "images" / "0--val").iterdir())[0]


def check_verified(forks: Forks, config: Path, *arguments: Any) -> list[str]:
    """Every stage passes; their names."""
    image = image_of(config)
    found = run(forks, "verify", "-c", config, *arguments, "--images", image)
    assert found["passed"], found["stages"]
    return [stage["name"] for stage in found["stages"]]


def test_inspect(forks: Forks, config: Path, cut: Path) -> None:
    found = run(forks, "inspect", "-c", config, "--slim_config", cut)
    assert [group["name"] for group in found["groups"] if not group["prunable"]] == HEAD
    assert all(group["kept"] < group["channels"] for group in found["groups"][: -len(HEAD)])
    assert found["after"]["macs"] < 0.8 * found["before"]["macs"]


def test_float_artifact(forks: Forks, config: Path, tmp_path: Path) -> None:
    """Measured, drawn on and compared with the model in each engine."""
    exported = run(forks, "export", "-c", config, "--output_dir", tmp_path)
    assert exported["precision"] == "float32" and exported["boxes"] > 0
    artifact = ("--artifact", tmp_path / "face")
    for engine in ([], artifact):
        measured = run(forks, "eval", "-c", config, *engine)
        assert measured["metric"] == "widerface_ap" and measured["ap"] > 0.99
    stages = check_verified(forks, config, *artifact)
    assert stages[:4] == ["preprocess", "dygraph", "exported program", "paddle inference"]
    drawn = ("--infer_img", image_of(config), "--output_dir", tmp_path / "drawn")
    beside = ("--beside", tmp_path / "face")
    found = run(forks, "infer", "-c", config, *drawn, *beside)["images"][0]
    assert {box["label"] for box in found["boxes"]} == {"face"}
    scores, others = ([box["score"] for box in found[side]] for side in ("boxes", "beside"))
    assert scores == pytest.approx(others, abs=1e-4)
    (picture,) = (tmp_path / "drawn").iterdir()
    assert cv2.imread(str(picture)).shape == (120, 2 * 140 + 4, 3)


def test_sensitivity(forks: Forks, config: Path, tmp_path: Path) -> None:
    """The baseline is the AP of an evaluation, on all images and on some."""
    names = ["backbone.blaze_1.conv_pw", "backbone.double_blaze_0.conv_pw"]
    options = ("--params", *names, "--ratios", 0.25, 0.75)
    output = ("--output", tmp_path / "s.json", "--bootstrap", 5)
    found = run(forks, "sensitivity", "-c", config, *options, *output)
    assert found["metric"] == "widerface_ap" and found["baseline"] > 0.99
    assert list(found["groups"]) == names
    assert all(group["0.75"] > 0.05 for group in found["groups"].values())


def test_float_artifact_of_a_cut(forks: Forks, config: Path, cut: Path, tmp_path: Path) -> None:
    slim = ("--slim_config", cut)
    proof = run(forks, "verify", "-c", config, *slim)
    assert [stage["name"] for stage in proof["stages"]] == HEAD and proof["passed"]
    run(forks, "export", "-c", config, *slim, "--output_dir", tmp_path)
    check_verified(forks, config, *slim, "--artifact", tmp_path / "face", "--no_eval")


@pytest.mark.slow
def test_int8_artifact(forks: Forks, config: Path, tmp_path: Path) -> None:
    """The outputs of the head stay in float, and Paddle-Lite's file agrees too."""
    folders = ("--output_dir", tmp_path, "--save_dir", tmp_path / "saved")
    options = ("--images", 8, "--max_drop", 50, *WIDE, *folders)
    found = run(forks, "quantize", "-c", config, *options)
    assert found["layers_float"] == HEAD and found["precision"] == "int8"
    weights = ("-o", f"weights={tmp_path / 'saved' / 'face' / 'quantized'}")
    if has_paddlelite():
        lite = ("--output_dir", tmp_path, "--lite", "both", "--no_eval")
        run(forks, "export", "-c", config, *lite, *weights)
    artifact = ("--artifact", tmp_path / "face", "--no_eval")
    assert "paddle inference" in check_verified(forks, config, *artifact, *weights)


@pytest.mark.slow
@pytest.mark.parametrize("chain", ["[Pruner, QAT]", "QAT"])
def test_trained_in_a_chain(forks: Forks, config: Path, tmp_path: Path, chain: str) -> None:
    """Cut, quantized, trained for an epoch, and shipped as what was trained."""
    slim = tmp_path / "slim.yml"
    slim.write_text(f"slim: {chain}\n{QAT}\n{PRUNER if 'Pruner' in chain else ''}\n")
    weights = config.parent / "weights"
    settings = ("-o", f"save_dir={tmp_path}", f"pretrain_weights={weights}")
    code = forks.run("train", "-c", config, "--slim_config", slim, "--eval", *settings)
    assert code == 0, forks.error()
    trained = ("-o", f"weights={tmp_path / 'face' / 'model_final'}")
    folder = ("--output_dir", tmp_path / "out")
    exported = run(forks, "export", "-c", config, *folder, *WIDE, *trained)
    assert exported["precision"] == "int8" and exported["layers_float"] == HEAD


def test_loss_of_another_head(forks: Forks, config: Path, tmp_path: Path) -> None:
    """YOLO's raw outputs are compared by the default loss; one line says that there are none."""
    slim = tmp_path / "slim.yml"
    teacher = f"{{config: {config}, weights: {config.parent / 'weights'}}}"
    slim.write_text(f"slim: Distill\nDistill: {{teacher: {teacher}, loss: l2}}\n")
    settings = ("-o", f"save_dir={tmp_path / 'saved'}")
    assert forks.run("train", "-c", config, "--slim_config", slim, *settings) == 2
    error = [line for line in forks.error().splitlines() if "error:" in line]
    assert len(error) == 1 and "Traceback" not in forks.error()
    assert "BlazeFace, has no 'yolo_head.yolo_output.0'; name layers in 'pairs'" in error[0]
    assert not (tmp_path / "saved").exists()

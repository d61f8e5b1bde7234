"""`TestReader.fuse_normalize`: the program normalises, and whatever runs it reads plain pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from slim_det.deploy.lite.convert import has_paddlelite
from slim_det.graph.normalization import read_normalization
from slim_det.graph.program import DeployProgram
from tests.blazeface import SHALLOW, lively_blazeface
from tests.forks import Forks
from tests.support import CONFIGS
from tests.trained import thin_detector

FUSED = ("-o", "TestReader.fuse_normalize=true")
WIDE = ("--max_gap", 10)  # points of AP: one of the few objects is several
KINDS = ("yolov3", "blazeface")
MEANS = {"yolov3": (0.485, 0.456, 0.406), "blazeface": (123 / 255, 117 / 255, 104 / 255)}


@pytest.fixture(scope="module")
def configs(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, shapes: Path, ppdet_registered: None
) -> dict[str, Path]:
    """Detectors with an AP near 1; the configurations name their weights."""
    folder = tmp_path_factory.mktemp("fused")
    return {
        "yolov3": thin_detector(folder / "thin", tiny, shapes).config,
        "blazeface": lively_blazeface(folder / "face", **SHALLOW),
    }


def run(forks: Forks, *arguments: Any) -> dict[str, Any]:
    """Run a command that has to go well; its figures."""
    figures = forks.folder / "figures.json"
    assert forks.run(*arguments, "--json", figures) == 0, forks.error()
    return json.loads(figures.read_text())


def image_of(config: Path) -> Path:
    return sorted(path for path in (config.parent / "set").rglob("*.[jp][pn]g"))[0]


def check_verified(forks: Forks, config: Path, *arguments: Any) -> dict[str, Any]:
    """Every stage passes; the stages by name."""
    found = run(forks, "verify", "-c", config, *arguments, "--images", image_of(config))
    assert found["passed"], found["stages"]
    return {stage["name"]: stage for stage in found["stages"]}


def steps_of(artifact: Path) -> list[str]:
    settings = yaml.safe_load((artifact / "infer_cfg.yml").read_text())
    return [step["type"] for step in settings["Preprocess"]]


@pytest.mark.parametrize("kind", KINDS)
def test_float_artifact(forks: Forks, configs: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """Its AP and boxes are the model's, whatever the configuration of the command says."""
    config = configs[kind]
    expected = run(forks, "eval", "-c", config)
    exported = run(forks, "export", "-c", config, "--output_dir", tmp_path, *FUSED)
    folder = Path(exported["artifact"])
    assert exported["boxes"] > 0 and steps_of(folder) == ["Resize", "Permute"]
    inside = read_normalization(DeployProgram.load(folder / "model"))
    assert inside is not None
    black = -inside.shift / inside.scale / 255  # the pixel that becomes zero
    assert black == pytest.approx(np.array(MEANS[kind]), rel=1e-5)
    for flags in ((), FUSED):
        measured = run(forks, "eval", "-c", config, "--artifact", folder, *flags)
        assert measured["ap"] == pytest.approx(expected["ap"], abs=1e-6) and measured["ap"] > 0.5
    stages = check_verified(forks, config, "--artifact", folder)
    assert stages["preprocess"]["note"] == "the program normalises"
    drawn = ("--infer_img", image_of(config), "--output_dir", tmp_path / "drawn")
    found = run(forks, "infer", "-c", config, *drawn, "--beside", folder)["images"][0]
    best, others = ([box["score"] for box in found[side]] for side in ("boxes", "beside"))
    assert len(best) > 0 and best == pytest.approx(others, abs=1e-4)


def quantized(
    forks: Forks, config: Path, folder: Path, flags: tuple[Any, ...]
) -> tuple[dict[str, Any], dict[str, float]]:
    """The figures of a calibration, and the input ranges of its file."""
    folders = ("--output_dir", folder, "--save_dir", folder / "saved")
    found = run(forks, "quantize", "-c", config, "--images", 4, *folders, *flags)
    manifest = json.loads((Path(found["artifact"]) / "slim_det.json").read_text())
    return found, manifest["quantization"]["input_ranges"]


def check_int8(forks: Forks, config: Path, found: dict[str, Any]) -> None:
    """Every engine computes what the quantized model does, without the flag."""
    assert steps_of(Path(found["artifact"])) == ["Resize", "Permute"]
    artifact = ("--artifact", found["artifact"], "--no_eval")
    stages = check_verified(forks, config, *artifact, "-o", f"weights={found['checkpoint']}")
    assert stages["preprocess"]["note"] == "the program normalises"


def test_int8_artifact_of_a_yolov3(forks: Forks, configs: dict[str, Path], tmp_path: Path) -> None:
    """One that is so thin finds nearly nothing in int8, so AP is left out."""
    config = configs["yolov3"]
    found, _ = quantized(forks, config, tmp_path, ("--no_eval", *FUSED))
    check_int8(forks, config, found)


def test_int8_artifact_of_a_blazeface(
    forks: Forks, configs: dict[str, Path], tmp_path: Path
) -> None:
    """The ranges are those of a file without normalisation, and so is the AP."""
    config = configs["blazeface"]
    plain, ranges = quantized(forks, config, tmp_path / "plain", WIDE)
    fused, others = quantized(forks, config, tmp_path / "fused", (*WIDE, *FUSED))
    assert ranges == others
    for figure in ("ap_float", "ap"):
        assert fused[figure] == pytest.approx(plain[figure], abs=0.01) and fused[figure] > 0.9
    check_int8(forks, config, fused)


@pytest.mark.skipif(not has_paddlelite(), reason="paddlelite is not installed")
def test_paddle_lite(forks: Forks, configs: dict[str, Path], tmp_path: Path) -> None:
    """The file for Paddle-Lite begins with the same normalisation."""
    lite = ("--lite", "arm", "--output_dir", tmp_path)
    found = run(forks, "export", "-c", configs["blazeface"], *lite, *FUSED)
    inside = read_normalization(DeployProgram.load(Path(found["artifact"]) / "lite" / "model"))
    assert inside is not None and set(found["lite"]["targets"]) == {"arm"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["yolov3/yolov3_mobilenet_v1_bccd", "blazeface/blazeface_lite_faces"]
)
def test_trained_detector(forks: Forks, shared: Path, tmp_path: Path, name: str) -> None:
    """Detectors that someone trained: nothing is lost in float, little in int8."""
    config = CONFIGS / f"{name}.yml"
    folder = shared / "data" / ("bccd" if "bccd" in name else "faces")
    data = [f"{part}Dataset.dataset_dir={folder}" for part in ("Train", "Eval", "Test")]
    weights = shared / "weights" / f"{config.stem}.pdparams"
    given = ("-o", *data, f"weights={weights}")
    expected = run(forks, "eval", "-c", config, *given)["ap"]
    assert expected > 0.7
    float_folder = ("--output_dir", tmp_path / "float")
    exported = run(forks, "export", "-c", config, *float_folder, *given, FUSED[1])
    measured = run(forks, "eval", "-c", config, "--artifact", exported["artifact"], *given)
    assert measured["ap"] == pytest.approx(expected, abs=1e-4)
    assert run(forks, "verify", "-c", config, "--artifact", exported["artifact"], *given)["passed"]
    folders = ("--output_dir", tmp_path / "int8", "--save_dir", tmp_path / "saved")
    quantized = run(forks, "quantize", "-c", config, *WIDE, *folders, *given, FUSED[1])
    assert quantized["ap"] == pytest.approx(expected, abs=0.02)
    given = ("-o", *data, f"weights={quantized['checkpoint']}")
    artifact = ("--artifact", quantized["artifact"])
    assert run(forks, "verify", "-c", config, *artifact, *given)["passed"]

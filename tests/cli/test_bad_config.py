"""Mistakes in configurations, slim files and flags: one line, exit code 2, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands import CONFIGS

Refused = Callable[..., str]


def write_yaml(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ({"snapshot_epochs": 2}, "unknown key 'snapshot_epochs'; did you mean 'snapshot_epoch'?"),
        ({"MobileNet": {"scal": 0.5}}, "MobileNet: unknown key 'scal'; did you mean 'scale'?"),
        (
            {"ScaledYOLOv3FPN": {"widht": 0.5}},
            "ScaledYOLOv3FPN: unknown key 'widht'; did you mean 'width'?",
        ),
        ({"MobileNets": {"scale": 0.5}}, "unknown key 'MobileNets'; did you mean 'MobileNet'?"),
        (
            {"BBoxPostProcess": {"nms": {"name": "MultiClasNMS"}}},
            "unknown component 'MultiClasNMS'; did you mean 'MultiClassNMS'?",
        ),
        ({"YOLOv3": {"backbone": "MobilNet"}}, "did you mean 'MobileNet'?"),
        ({"architecture": "YOLOv33"}, "did you mean 'YOLOv3'?"),
        ({"ScaledYOLOv3FPN": {"width": 0.3}}, "width 0.3"),
        ({"use_gpu": True}, "use_gpu is true"),
    ],
)
def test_configuration(
    refused: Refused, tiny: Path, tmp_path: Path, added: dict[str, Any], said: str
) -> None:
    """The message names the key and the nearest that exists."""
    config = write_yaml(tmp_path / "own.yml", {"_BASE_": [str(tiny)], **added})
    line = refused("train", "-c", config)
    assert said in line


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epochs=3", "unknown key 'epochs'; did you mean 'epoch'?"),
        ("MobileNet.scal=0.5", "MobileNet: unknown key 'scal'; did you mean 'scale'?"),
        ("epoch", "expected Key=value"),
        ("=3", "expected Key=value"),
        ("epoch=[1", "the value is not YAML"),
        ("YOLOv3Head.anchors.0=3", "'anchors' is a list; give the complete list"),
        ("use_gpu=true", "add -o use_gpu=false"),
        ("epoch=many", "epoch: 'many' is not valid"),
        ("OptimizerBuilder.optimizer.momentums=0.9", "did you mean 'momentum'?"),
        ("OptimizerBuilder.optimizer.type=Momentun", "did you mean 'Momentum'?"),
        ("TrainReader.sample_transforms=[{Decoed: {}}]", "did you mean 'Decode'?"),
    ],
)
def test_override(refused: Refused, tiny: Path, override: str, said: str) -> None:
    """`-o` is held to the same keys, and quoted."""
    line = refused("train", "-c", tiny, "-o", override)
    assert said in line


@pytest.mark.parametrize(
    ("slim", "said"),
    [
        ({"slim": "Prunner"}, "unknown strategy 'Prunner'; did you mean 'Pruner'?"),
        ({"slim": ["Pruner", "Prunner"]}, "unknown strategy 'Prunner'"),
        ({"slim": []}, "expected slim: Pruner"),
        ({"Pruner": {}}, "no 'slim' is given"),
        ({"slim": "Pruner", "Prunner": {}}, "unknown key 'Prunner'; did you mean 'Pruner'?"),
        ({"Pruner": {"ratios": 0.5}}, "unknown key 'ratios'; did you mean 'pruned_ratios'?"),
        ({"Pruner": {"criterion": "l1norm"}}, "'l1norm'; did you mean 'l1_norm'?"),
        ({"Pruner": {"align": 0}}, "Pruner.align: 0 is not valid"),
        ({"Pruner": {"share_of": "energy"}}, "expected criterion: bn_scale"),
        ({"slim": "Slim", "Slim": {"sparsty": 1}}, "'sparsty'; did you mean 'sparsity'?"),
        ({"slim": "Slim", "Slim": {"sparsity": -1}}, "Slim.sparsity: -1 is not valid"),
        ({"slim": "Slim", "Slim": {"params": []}}, "Slim.params: [] is not valid"),
        ({"slim": "Slim", "Slim": {"params": ["neck.yolo_block.0.tipp"]}}, "yolo_block.0.tip'?"),
        ({"slim": "Slim", "Slim": {"params": "yolo_head.yolo_output.0"}}, "cannot be cut"),
    ],
)
def test_slim_file(
    refused: Refused, tiny: Path, tmp_path: Path, slim: dict[str, Any], said: str
) -> None:
    """A slim file may hold nothing that does not exist."""
    base = {} if said.startswith("no ") else {"slim": "Pruner"}
    pruner = {"pruned_ratios": 0.5, **slim.get("Pruner", {})}
    path = write_yaml(tmp_path / "slim.yml", {**base, **slim, "Pruner": pruner})
    assert said in refused("train", "-c", tiny, "--slim_config", path)


@pytest.mark.parametrize(
    ("params", "ratios", "said"),
    [
        (["neck.yolo_block.0.tip"], 0, "ratio 0 for 'all layers' is not valid"),
        (["neck.yolo_block.0.tip"], [1], "ratio 1 for 'neck.yolo_block.0.tip' is not valid"),
        (["neck.yolo_block.0.tip"], [1.5], "ratio 1.5"),
        (["neck.yolo_block.0.tip"], ["a"], "ratio 'a'"),
        (["neck.yolo_block.0.tip"], [True], "ratio True"),
        (["neck.yolo_block.0.tip"], [0.5, 0.5], "1 pruned_params but 2 pruned_ratios"),
        (["neck.yolo_block.0.tip"], "r587", "unknown preset 'r587'; did you mean 'r578'?"),
        (["neck.yolo_block.0.tipp"], 0.5, "did you mean 'neck.yolo_block.0.tip'?"),
        (["yolo_head.yolo_output.0"], 0.5, "'yolo_head.yolo_output.0' cannot be cut"),
        (["neck.yolo_block.0.tip"], 0.001, "nothing to prune"),
        ([], 0.5, "expected a list of layers"),
    ],
)
def test_layers_and_ratios(
    refused: Refused, tiny: Path, tmp_path: Path, params: Any, ratios: Any, said: str
) -> None:
    """Ratios lie between 0 and 1 and belong to layers that exist and can be cut."""
    pruner = {"pruned_params": params, "pruned_ratios": ratios}
    path = write_yaml(tmp_path / "slim.yml", {"slim": "Pruner", "Pruner": pruner})
    assert said in refused("train", "-c", tiny, "--slim_config", path)


def test_missing_files_name_their_neighbours(refused: Refused, tiny: Path, r578: Path) -> None:
    """A wrong path is answered with the nearest file beside it."""
    missing = tiny.with_name("tinny.yml")
    assert f"{missing} does not exist; did you mean 'tiny.yml'?" in refused("eval", "-c", missing)
    slim = r578.with_name("prune_r587.yml")
    line = refused("train", "-c", tiny, "--slim_config", slim)
    assert f"{slim} does not exist; did you mean 'prune_r578.yml'?" in line


def test_energy_is_not_known_without_weights(refused: Refused, tiny: Path) -> None:
    """`inspect` reads none, and all scales of a new model are equal."""
    line = refused("inspect", "-c", tiny, "--slim_config", CONFIGS / "prune_bn_scale_energy.yml")
    assert "prune_bn_scale_energy.yml: Pruner.share_of: energy depends on the weights" in line


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!Callable"])
@pytest.mark.parametrize("flag", ["-c", "--slim_config"])
def test_code_in_yaml_is_not_run(
    refused: Refused, tiny: Path, tmp_path: Path, tag: str, flag: str
) -> None:
    """ppdet's own loader would run it."""
    mark = tmp_path / "ran"
    path = write_yaml(tmp_path / "evil.yml", f"epoch: {tag} ['touch {mark}']\n")
    config = ["-c", path] if flag == "-c" else ["-c", tiny, flag, path]
    line = refused("train", *config)
    assert "is not valid YAML" in line and "evil.yml" in line
    assert not mark.exists()


@pytest.mark.parametrize("size", [100, 31, 0])
def test_image_size(refused: Refused, cli: Any, tiny: Path, size: int) -> None:
    """YOLOv3 needs multiples of its stride."""
    if size:
        assert "expected multiples of 32" in refused("inspect", "-c", tiny, "--image_size", size)
    else:
        assert cli("inspect", "-c", tiny, "--image_size", size).code == 2


@pytest.mark.parametrize("folder", ["file/below", "/proc/nothing"])
def test_folder_that_cannot_be_written(
    refused: Refused, tiny: Path, unpruned: Path, tmp_path: Path, shapes: Path, folder: str
) -> None:
    """It is found out before any long work."""
    (tmp_path / "file").write_text("not a folder")
    target = folder if folder.startswith("/") else tmp_path / folder
    image = next((shapes / "images").iterdir())
    weights = f"weights={unpruned}"
    for run in (
        ("train", "-c", tiny, "-o", f"save_dir={target}"),
        ("export", "-c", tiny, "--output_dir", target, "-o", weights),
        ("infer", "-c", tiny, "--infer_img", image, "--output_dir", target, "-o", weights),
    ):
        line = refused(*run)
        assert f"output folder '{target}" in line and "expected a writable folder" in line

"""The way of a pruned model, every command in a process of its own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from slim_det.demo import CLASS_NAMES
from tests.commands import CONFIGS, IMAGE_SIDE, Outcome, command

CHECKPOINT = (".pdparams", ".pdopt", ".plan.json")
MACS_BEFORE, MACS_AFTER = 22160432640, 6727971440


def succeed(*arguments: Any, cwd: Path) -> Outcome:
    run = command(*arguments, cwd=cwd)
    assert run.code == 0, run.err + run.out
    return run


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all commands of this file write."""
    return tmp_path_factory.mktemp("chain")


@pytest.fixture(scope="module")
def evaluated(folder: Path, tiny: Path, trained: Path) -> dict[str, Any]:
    """What `eval` says of the trained weights, without a slim file."""
    path = folder / "eval.json"
    succeed("eval", "-c", tiny, "-o", f"weights={trained}", "--json", path, cwd=folder)
    return read(path)


@pytest.fixture(scope="module")
def artifact(folder: Path, tiny: Path, trained: Path) -> Path:
    """The exported model, with the JSON of `export` beside it."""
    weights = f"weights={trained}.pdparams"
    output = ("--output_dir", folder / "exported", "--json", folder / "export.json")
    succeed("export", "-c", tiny, "-o", weights, *output, cwd=folder)
    return folder / "exported" / "tiny"


@pytest.fixture(scope="module")
def found(folder: Path, tiny: Path, trained: Path, shapes: Path) -> list[dict[str, Any]]:
    """What `infer` finds on every image."""
    output = ("--output_dir", folder / "drawn", "--json", folder / "boxes.json")
    images = ("--infer_dir", shapes / "images")
    succeed("infer", "-c", tiny, "-o", f"weights={trained}", *images, *output, cwd=folder)
    return read(folder / "boxes.json")["images"]


@pytest.fixture(scope="module")
def truth(folder: Path, shapes: Path, found: list[dict[str, Any]]) -> Path:
    """Annotations after which the five best boxes that the model finds are the objects."""
    content = read(shapes / "annotations" / "instances_val.json")
    ids = {image["file_name"]: image["id"] for image in content["images"]}
    content["annotations"] = []
    for image in found:
        for box in image["boxes"][:5] if Path(image["file"]).name in ids else []:
            left, top, right, bottom = box["bbox_xyxy"]
            entry = {
                "id": len(content["annotations"]) + 1,
                "image_id": ids[Path(image["file"]).name],
                "category_id": CLASS_NAMES.index(box["label"]) + 1,
                "bbox": [left, top, right - left, bottom - top],
                "area": (right - left) * (bottom - top),
                "iscrowd": 0,
            }
            content["annotations"].append(entry)
    path = folder / "truth.json"
    path.write_text(json.dumps(content))
    return path


def test_training_leaves_complete_checkpoints(trained: Path) -> None:
    """Weights, optimizer and plan of the last and of the best model, and nothing else."""
    names = {path.name for path in trained.parent.iterdir()}
    both = {f"{n}{s}" for n in ("model_final", "best_model") for s in CHECKPOINT}
    assert names == both | {"best_model.json", "bbox.json"}
    assert read(trained.with_name("best_model.json"))["epoch"] == 0


def test_training_says_what_the_cut_costs(trained: Path) -> None:
    log = (trained.parent.parent / "train.log").read_text()
    assert "slim_det: pruned 18 groups: MACs at 96x96 34909056 -> 11245824" in log
    assert "slim_det: before fine-tuning: coco_ap 0." in log


def test_file_is_as_small_as_the_plan_says(trained: Path) -> None:
    """Four bytes a number, and a name and a shape for each tensor."""
    plan = read(Path(f"{trained}.plan.json"))
    size = Path(f"{trained}.pdparams").stat().st_size
    floats = plan["cost"]["after"]["params"]
    assert floats * 3 < plan["cost"]["before"]["params"] * 1.01
    assert floats * 4 < size < floats * 4 + 256 * len(plan["tensors"])


def test_eval_gives_the_same_twice(
    folder: Path, tiny: Path, trained: Path, evaluated: dict[str, Any]
) -> None:
    """In two processes, and it is the AP that training has seen."""
    again = folder / "again.json"
    succeed("eval", "-c", tiny, "-o", f"weights={trained}", "--json", again, cwd=folder)
    first, second = ({**r, "latency_ms": 0} for r in (evaluated, read(again)))
    assert first == second
    assert first["num_images"] == 6 and first["metric"] == "coco_ap"
    assert first["ap"] == pytest.approx(read(trained.with_name("best_model.json"))["ap"], abs=1e-6)


def test_artifact_scores_like_the_model(
    folder: Path, tiny: Path, artifact: Path, trained: Path, truth: Path, cli: Any
) -> None:
    """The same AP from a folder alone, where AP hangs on every box and its rank."""
    deployed, dygraph = folder / "deployed.json", folder / "dygraph.json"
    annotations = ("-o", f"EvalDataset.anno_path={truth}")
    run = ("eval", "-c", tiny, *annotations)
    succeed(*run, "--artifact", artifact, "--json", deployed, cwd=folder)
    assert cli(*run, f"weights={trained}", "--json", dygraph).code == 0
    left, right = read(deployed), read(dygraph)
    assert (left["engine"], right["engine"]) == ("paddle_inference", "dygraph")
    assert left["artifact"] == str(artifact) and right["artifact"] is None
    assert right["ap"] > 0.5
    for key in ("ap", "ap50"):
        assert left[key] == pytest.approx(right[key], abs=0.005)


def test_artifact_that_does_not_belong_here(
    tiny: Path, artifact: Path, cli: Any, tmp_path: Path
) -> None:
    """Neither classes in another order nor settings of another export give a figure."""
    copied = Path(shutil.copytree(artifact, tmp_path / "copied"))
    settings = yaml.safe_load((copied / "infer_cfg.yml").read_text())
    settings["label_list"].reverse()
    (copied / "infer_cfg.yml").write_text(yaml.safe_dump(settings))
    run = ("eval", "-c", tiny, "--artifact", copied)
    done = cli(*run)
    assert done.code == 2 and "infer_cfg.yml is not the file that was exported" in done.err
    (copied / "slim_det.json").unlink()
    done = cli(*run)
    wanted = f"class 1 of EvalDataset is 'circle', that of artifact '{copied}' is 'cross'; expected"
    assert done.code == 2 and wanted in done.err


def test_pictures_never_replace_the_images(
    tiny: Path, artifact: Path, shapes: Path, cli: Any, tmp_path: Path
) -> None:
    image = min((shapes / "images").iterdir())
    own = Path(shutil.copy(image, tmp_path))
    content = own.read_bytes()
    run = ("infer", "-c", tiny, "--artifact", artifact, "--output_dir", tmp_path)
    for given in (("--infer_img", own), ("--infer_dir", tmp_path)):
        done = cli(*run, *given)
        assert done.code == 2 and "which would be overwritten; expected another one" in done.err
    assert own.read_bytes() == content


def test_export_describes_what_it_wrote(folder: Path, artifact: Path, trained: Path) -> None:
    """Four files; the size on disk is that of the cut model."""
    names = {"model.pdmodel", "model.pdiparams", "infer_cfg.yml", "slim_det.json"}
    assert {path.name for path in artifact.iterdir()} == names
    plan = read(Path(f"{trained}.plan.json"))
    figures = read(folder / "export.json")
    assert figures["macs"] == plan["cost"]["after"]["macs"]
    assert figures["images_checked"] == 6
    floats = (artifact / "model.pdiparams").stat().st_size / 4
    assert floats == pytest.approx(plan["cost"]["after"]["params"], rel=0.02)
    assert read(artifact / "slim_det.json")["plan"]["fingerprint"] == plan["fingerprint"]


def test_infer_draws_and_lists(folder: Path, found: list[dict[str, Any]]) -> None:
    """One picture for each image, boxes within it."""
    assert len(list((folder / "drawn").iterdir())) == len(found) == 22
    boxes = [box for image in found for box in image["boxes"]]
    assert len(boxes) > 22
    assert {box["label"] for box in boxes} <= set(CLASS_NAMES)
    for box in boxes:
        assert 0.0 < box["score"] <= 1.0
        assert all(0 <= side <= IMAGE_SIDE - 1 for side in box["bbox_xyxy"])


def test_verify_passes(folder: Path, tiny: Path, trained: Path) -> None:
    """Three outputs of the head, each equal to that of the masked model."""
    path = folder / "verify.json"
    succeed("verify", "-c", tiny, "-o", f"weights={trained}", "--json", path, cwd=folder)
    result = read(path)
    assert result["passed"] is True
    assert [s["name"] for s in result["stages"]] == [f"yolo_head.yolo_output.{i}" for i in range(3)]
    assert all(s["cosine"] > 0.999999 and s["max_abs"] > 0.0 for s in result["stages"])


def test_training_goes_on_without_the_slim_file(folder: Path, tiny: Path, trained: Path) -> None:
    """From weights alone: epoch 0 again, the plan is kept."""
    start = ("-o", f"pretrain_weights={trained}", f"save_dir={folder / 'further'}")
    run = succeed("train", "-c", tiny, *start, cwd=folder)
    assert "replayed" in run.out and "Epoch: [0] [0/2]" in run.out
    plan = (folder / "further" / "tiny" / "model_final.plan.json").read_text()
    assert plan == Path(f"{trained}.plan.json").read_text()


def test_inspect_reports_the_published_detector(folder: Path) -> None:
    """YOLOv3-MobileNetV1 on COCO at 608 pixels: the exact numbers, before and after."""
    path = folder / "inspect.json"
    config = CONFIGS / "yolov3_mobilenet_v1_270e_coco.yml"
    slim = ("--slim_config", CONFIGS / "prune_r578.yml")
    run = succeed("inspect", "-c", config, *slim, "--json", path, cwd=folder)
    report = read(path)
    assert {"image_size_hw", "before", "after", "groups"} <= report.keys()
    assert report["image_size_hw"] == [608, 608]
    assert report["before"] == {
        "macs": MACS_BEFORE,
        "params_trainable": 24571197,
        "params": 24609981,
        "size_mb": pytest.approx(98.439924),
    }
    assert report["after"] == {
        "macs": MACS_AFTER,
        "params_trainable": 7987880,
        "params": 8016992,
        "size_mb": pytest.approx(32.067968),
    }
    tip = next(g for g in report["groups"] if g["name"] == "neck.yolo_block.2.tip")
    known = {"channels": 256, "kept": 51, "ratio": 0.8, "prunable": True, "reason": ""}
    assert {key: tip[key] for key in known} == known
    not_prunable = [group for group in report["groups"] if not group["prunable"]]
    assert not_prunable and all(group["reason"] for group in not_prunable)
    assert f"MACs: {MACS_BEFORE} -> {MACS_AFTER} (-69.64%)" in run.out
    assert "20.64 -> 6.27 GFLOPs" in run.out  # as PaddleDetection's tables print it

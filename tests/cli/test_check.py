"""`slim-det check` says what a configuration's data sets hold, and everything that is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.commands import CONFIGS, Outcome
from tests.support import ROOT

Cli = Callable[..., Outcome]


def test_sound_data(cli: Cli, tiny: Path, tmp_path: Path) -> None:
    run = cli("check", "-c", tiny, "--json", tmp_path / "check.json")
    assert (run.code, run.err) == (0, "")
    lines = run.out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("TrainDataset: COCODataSet, 16 images, ")
    assert lines[1].startswith("EvalDataset: COCODataSet, 6 images, ")
    figures = json.loads((tmp_path / "check.json").read_text())
    assert figures["passed"] is True
    train = figures["datasets"][0]
    assert train["num_images"] == 16 and not train["faults"] and not train["remarks"]
    assert f"{sum(train['objects'].values())} objects (circle " in lines[0]


def test_every_fault_of_both_data_sets(cli: Cli, tiny: Path, shapes: Path, tmp_path: Path) -> None:
    """The file lists all places, the lines five of each kind; other commands name the first."""
    own = Path(shutil.copytree(shapes, tmp_path / "own"))
    path = own / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    count = len(content["annotations"])
    for entry in content["annotations"]:
        entry["category_id"] = 99
    path.write_text(json.dumps(content))
    (own / "annotations" / "instances_val.json").write_text("[]")
    folders = ("-o", f"TrainDataset.dataset_dir={own}", f"EvalDataset.dataset_dir={own}")
    run = cli("check", "-c", tiny, *folders, "--json", tmp_path / "check.json")
    assert run.code == 2
    assert run.err == (
        "slim-det check: error: TrainDataset and EvalDataset cannot be used as they are; see the "
        "lines above\n"
    )
    assert f"TrainDataset: '{path}': {count} unknown category_ids: annotations[0] 99, " in run.out
    assert "EvalDataset: '" in run.out and "is not a COCO annotation file" in run.out
    train, val = json.loads((tmp_path / "check.json").read_text())["datasets"]
    assert len(train["faults"][0]["places"]) == count
    assert "is not a COCO annotation file" in val["error"]


def test_photographs(cli: Cli, bccd: Path) -> None:
    """Two invalid boxes of the blood cells are known, and left out."""
    run = cli("check", "-c", CONFIGS / "yolov3_mobilenet_v1_bccd.yml")
    assert run.code == 0, run.err
    assert "TrainDataset: VOCDataSet, 205 images, 2804 objects (Platelets 209, " in run.out
    assert "EvalDataset: VOCDataSet, 87 images, 1137 objects (" in run.out
    assert run.out.count("1 box that is a single point") == 2
    assert "BloodImage_00338.xml' object 13 (RBC)" in run.out
    assert "BloodImage_00343.xml' object 4 (RBC)" in run.out
    run = cli("check", "-c", ROOT / "configs" / "blazeface" / "blazeface_lite_faces.yml")
    assert run.code == 0, run.err
    assert "TrainDataset: WIDERFaceDataSet, 683 images, 3180 objects (face 3180)" in run.out
    assert "12 boxes partly outside their images: line 37 " in run.out

"""Annotations and images with one fault: one line, exit code 2, nothing written.

How each fault is found is tested with the readers, in tests/evaluate/data.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.blazeface import draw_faces, write_blazeface

Refused = Callable[..., str]

COMMANDS = ("train", "eval")


def own(folder: Path, *more: str) -> list[str]:
    sets = ("TrainDataset", "EvalDataset")
    return ["-o", *(f"{name}.dataset_dir={folder}" for name in sets), *more]


@pytest.fixture
def damaged(shapes: Path, tmp_path: Path) -> Path:
    """A copy of the drawn data set that a test may damage."""
    return Path(shutil.copytree(shapes, tmp_path / "own"))


def first(folder: Path, split: str) -> tuple[Path, Path]:
    """Image and XML of the first line of a list."""
    image, xml = (folder / f"{split}.txt").read_text().split()[:2]
    return folder / image, folder / xml


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("pattern", "text", "said"),
    [
        (r"<bndbox>.*?</bndbox>", "", "1 missing 'bndbox'"),
        (r"<xmin>.*?</xmin>", "", "1 missing 'xmin'"),
        (r"<xmin>.*?</xmin>", "<xmin>abc</xmin>", "1 invalid 'xmin'"),
        (r"<xmin>.*?</xmin>", "<xmin>nan</xmin>", "1 invalid 'xmin'"),
        (r"<xmin>.*?</xmin>", "<xmin>95.5</xmin>", "1 reversed box"),
        (r"<xmin>(.*?)</xmin>(.*?)<xmax>.*?<", r"<xmin>\1</xmin>\2<xmax>\1<", "1 box without area"),
        (r"<xmin>.*?</xmin>(.*?)<xmax>.*?<", r"<xmin>97</xmin>\1<xmax>99<", "1 box outside"),
        (r"<width>.*?<", "<width>48<", "1 annotation for another image size"),
        (r"<name>.*?<", "<name>disc<", "1 object of an unknown class"),
        (r"</object>", "", "1 annotation that is not XML"),
    ],
)  # fmt: skip
def test_voc(
    refused: Refused,
    tiny_voc: Path,
    damaged: Path,
    command: str,
    pattern: str,
    text: str,
    said: str,
) -> None:
    name, split = {"train": ("TrainDataset", "train"), "eval": ("EvalDataset", "val")}[command]
    _, xml = first(damaged, split)
    xml.write_text(re.sub(pattern, text, xml.read_text(), count=1, flags=re.DOTALL))
    line = refused(command, "-c", tiny_voc, *own(damaged))
    assert line.startswith(f"slim-det {command}: error: {name}: {said}")
    assert f"'{xml}'" in line and "expected" in line


@pytest.mark.parametrize("command", COMMANDS)
def test_labels_that_occur_twice(
    refused: Refused, tiny_voc: Path, damaged: Path, command: str
) -> None:
    (damaged / "label_list.txt").write_text("circle\nsquare\ncircle\ncross\n")
    line = refused(command, "-c", tiny_voc, *own(damaged))
    assert "line 3: 'circle' is the name of line 1 too; expected every class once" in line


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bbox": None}, "1 invalid 'bbox': annotations[0] bbox: None"),
        ({"bbox": [1, 2, 3]}, "1 invalid 'bbox': annotations[0] bbox: [1, 2, 3]"),
        ({"bbox": [10, 10, -5, 5]}, "1 box with a negative side"),
        ({"bbox": [100, 10, 5, 5]}, "1 box outside its image"),
        ({"category_id": 77}, "1 unknown category_id: annotations[0] 77"),
        ({"image_id": 999}, "1 unknown image_id: annotations[0] 999"),
        ({"image_id": "0"}, "1 invalid 'image_id': annotations[0] image_id: '0'"),
        ({"id": 2}, "1 id of annotations that occurs again: 2 (2 times)"),
    ],
)
def test_coco(
    refused: Refused, tiny: Path, damaged: Path, command: str, changes: dict[str, Any], said: str
) -> None:
    split = {"train": "train", "eval": "val"}[command]
    path = damaged / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text())
    content["annotations"][1]["id"] = 2
    content["annotations"][0].update(changes)
    path.write_text(json.dumps(content))
    assert f"'{path}': {said}" in refused(command, "-c", tiny, *own(damaged))


@pytest.mark.parametrize("command", COMMANDS)
def test_nothing_but_crowds(refused: Refused, tiny: Path, damaged: Path, command: str) -> None:
    for path in (damaged / "annotations").glob("*.json"):
        content = json.loads(path.read_text())
        for entry in content["annotations"]:
            entry["iscrowd"] = 1
        path.write_text(json.dumps(content))
    assert "has no object that counts" in refused(command, "-c", tiny, *own(damaged))


def spoil_as_gif(path: Path) -> str:
    Image.open(path).convert("P").save(path, "GIF")
    return "is a GIF image"


def spoil_by_cutting(path: Path) -> str:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return "is damaged: "


@pytest.mark.parametrize("command", [*COMMANDS, "infer"])
@pytest.mark.parametrize("spoil", [spoil_as_gif, spoil_by_cutting])
def test_images(
    refused: Refused,
    tiny: Path,
    unpruned: Path,
    damaged: Path,
    command: str,
    spoil: Callable[[Path], str],
) -> None:
    image, _ = first(damaged, {"train": "train"}.get(command, "val"))
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    Image.fromarray(noise).save(image, "JPEG")
    said = spoil(image)
    if command == "infer":
        line = refused(
            *(command, "-c", tiny, "-o", f"weights={unpruned}", "--infer_dir", image.parent)
        )
    else:
        line = refused(command, "-c", tiny, *own(damaged))
    assert f"1 unreadable image: '{image}' {said}" in line


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("90000 90000 20 20", "1 box outside its image: line 3 90000 90000 90020 90020 of "),
        ("10 10 -20 20", "line 3: expected a width and a height of at least 0"),
    ],
)
def test_faces(refused: Refused, tmp_path: Path, command: str, row: str, said: str) -> None:
    root = draw_faces(tmp_path / "faces", num_train=8, num_val=2)
    config = write_blazeface(tmp_path / "faces.yml", root)
    for path in root.glob("*.txt"):
        lines = path.read_text().splitlines()
        lines[2] = f"{row} 0 0 0 0 0 0 "
        path.write_text("\n".join(lines) + "\n")
    assert said in refused(command, "-c", config)

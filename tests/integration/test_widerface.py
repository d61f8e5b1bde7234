"""AP on WIDER FACE of complete sets, by the public command in a process of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slim_det.evaluate.widerface.files import write_prediction
from slim_det.evaluate.widerface.truth import GroundTruth, read_ground_truth
from tests.commands import command, done


def found_by_command(pred: Path, truth: Path, folder: Path) -> dict[str, Any]:
    target = folder / "figures.json"
    done(
        command(
            *("widerface", "--pred", pred, "--ground_truth", truth, "--json", target), cwd=folder
        )
    )
    return json.loads(target.read_text())


def write_every_second(folder: Path, truth: GroundTruth, setting: int) -> list[float]:
    """Detect, in every second image, the faces that count in one setting; the recall of each.

    All scores are equal, and no detection is wrong: AP is the recall. Faces that count in no
    wider setting are ignored there, and so is what detects them.
    """
    found, total = np.zeros(3), np.zeros(3)
    for i, (name, faces, counted) in enumerate(zip(truth.names, truth.faces, truth.counted)):
        total += counted.sum(axis=1)
        if i % 2:
            chosen = counted[setting]
            found += (counted & chosen).sum(axis=1)
            rows = np.column_stack((faces[chosen], np.full(chosen.sum(), 0.5)))
            write_prediction(folder, name, rows)
    return (found / total).tolist()


@pytest.mark.parametrize("setting", [0, 2])
def test_official_set(shared: Path, tmp_path: Path, setting: int) -> None:
    folder = shared / "data" / "wider_face_ground_truth"
    if not folder.is_dir():
        pytest.skip("needs the official ground truth")
    truth = read_ground_truth(folder)
    expected = write_every_second(tmp_path / "pred", truth, setting)
    figures = found_by_command(tmp_path / "pred", folder, tmp_path)
    assert [figures[key] for key in ("easy", "medium", "hard")] == pytest.approx(expected, abs=1e-3)
    assert figures["bands"] == "official" and figures["num_images"] == 3226


def test_bands_of_a_text_file(shared: Path, tmp_path: Path) -> None:
    path = shared / "data" / "faces" / "wider_face_split" / "wider_face_val_bbx_gt.txt"
    if not path.is_file():
        pytest.skip("needs the pictures of faces")
    truth = read_ground_truth(path)
    expected = write_every_second(tmp_path / "pred", truth, 2)
    figures = found_by_command(tmp_path / "pred", path, tmp_path)
    assert [figures[key] for key in ("easy", "medium", "hard")] == pytest.approx(expected, abs=1e-9)
    assert figures["bands"] == "height>=50/30/10 px"

"""`slim-det widerface`: its line, its JSON, and one line for whatever is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.commands import Outcome

TRUTH = "e/a.b.jpg\n1\n10 10 19 59\ne/c.png\n1\n10 10 19 39\n"


@pytest.fixture
def truth(tmp_path: Path) -> Path:
    """Ground truth of two images with one face each."""
    path = tmp_path / "truth.text"
    path.write_text(TRUTH)
    return path


@pytest.fixture
def pred(tmp_path: Path) -> Path:
    """A perfect detection of one of the two faces."""
    folder = tmp_path / "pred" / "e"
    folder.mkdir(parents=True)
    (folder / "a.b.txt").write_text("e/a.b.jpg\n1\n10 10 19 59 0.9\n")
    return folder.parent


def test_figures(cli: Callable[..., Outcome], truth: Path, pred: Path, tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    run = cli("widerface", "--pred", pred, "--ground_truth", truth, "--json", target)
    assert run.code == 0 and run.err == ""
    said = run.out.splitlines()
    assert len(said) == 2 and "1 of 2 images have no file" in said[0]
    assert said[1].startswith(
        "WIDER FACE AP (height>=50/30/10 px): easy 1.0000, medium 0.5000, hard 0.5000 on 2 images"
    )
    figures = json.loads(target.read_text())
    assert 0 < figures.pop("seconds") < 10
    assert figures == {
        "easy": 1.0,
        "medium": 0.5,
        "hard": 0.5,
        "num_images": 2,
        "bands": "height>=50/30/10 px",
    }


def test_paddle_is_not_imported(truth: Path, pred: Path) -> None:
    """Files are all that the command needs, and paddle takes seconds to import."""
    arguments = ["widerface", "--pred", str(pred), "--ground_truth", str(truth)]
    code = (
        f"import sys; from slim_det.cli import main; code = main({arguments!r}); "
        "print(code, 'paddle' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "0 False"


def test_no_ground_truth(refused: Callable[..., str], pred: Path, tmp_path: Path) -> None:
    line = refused("widerface", "--pred", pred, "--ground_truth", tmp_path / "truth.txt")
    assert line.startswith("slim-det widerface: error: ground truth '")
    assert "does not exist; expected a folder with wider_face_val.mat" in line


def test_missing_mat(refused: Callable[..., str], pred: Path) -> None:
    line = refused("widerface", "--pred", pred, "--ground_truth", pred)
    assert "lacks wider_face_val.mat, wider_easy_val.mat, wider_medium_val.mat, wider_hard" in line


def test_no_predictions(refused: Callable[..., str], truth: Path, tmp_path: Path) -> None:
    assert "does not exist" in refused(
        "widerface", "--pred", tmp_path / "none", "--ground_truth", truth
    )
    (tmp_path / "none" / "e").mkdir(parents=True)
    assert "has no predictions; expected files EVENT/NAME.txt" in refused(
        "widerface", "--pred", tmp_path / "none", "--ground_truth", truth
    )


def test_unknown_image(refused: Callable[..., str], truth: Path, pred: Path) -> None:
    (pred / "e" / "a.c.txt").write_text("e/a.c.jpg\n0\n")
    line = refused("widerface", "--pred", pred, "--ground_truth", truth)
    assert "a.c.txt' belongs to no image of the ground truth; did you mean 'e/a.b'?" in line


def test_broken_row_writes_nothing(
    refused: Callable[..., str], truth: Path, pred: Path, tmp_path: Path
) -> None:
    (pred / "e" / "c.txt").write_text("e/c.png\n2\n1 2 3 4 0.5\n1 2 3 4 O.5\n")
    line = refused(
        *("widerface", "--pred", pred, "--ground_truth", truth),
        *("--json", tmp_path / "figures.json"),
    )
    said = "c.txt' line 4: expected 5 finite numbers, found '1 2 3 4 O.5', where 'O.5' is text"
    assert line.endswith(said)


def test_truth_cut_short(refused: Callable[..., str], truth: Path, pred: Path) -> None:
    truth.write_text("e/a.b.jpg\n3\n10 10 19 59\n")
    line = refused("widerface", "--pred", pred, "--ground_truth", truth)
    assert "line 4: expected 3 rows of faces of 'e/a.b.jpg', found 1 before the end" in line

"""Files of detections: written and read back, their names, and the messages about broken ones."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from slim_det.core.errors import DataError
from slim_det.evaluate.widerface.files import (
    find_predictions,
    image_key,
    image_name,
    read_prediction,
    read_predictions,
    write_prediction,
    xywh_of,
)
from tests.commands import process_environment

ROW = "10.5 20 30 40 0.75"


def file_of(folder: Path, *lines: str, name: str = "0--Parade/a") -> Path:
    path = folder / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_no_rows(tmp_path: Path) -> None:
    path = write_prediction(tmp_path, "0--Parade/a", np.zeros((0, 5)))
    assert path.read_text() == "0--Parade/a\n0\n"
    assert read_prediction(path).shape == (0, 5)


def test_one_row(tmp_path: Path) -> None:
    path = write_prediction(tmp_path, "0--Parade/a", np.array([[10.5, 20, 30, 40, 0.75]]))
    assert path == tmp_path / "0--Parade" / "a.txt"
    assert path.read_text() == f"0--Parade/a\n1\n{ROW}\n"
    assert read_prediction(path).tolist() == [[10.5, 20.0, 30.0, 40.0, 0.75]]


def test_rows_keep_their_order(tmp_path: Path) -> None:
    path = file_of(tmp_path, "a.jpg", "3", "1 2 3 4 0.1", "1 2 3 4 0.9", "1 2 3 4 0.5")
    assert read_prediction(path)[:, 4].tolist() == [0.1, 0.9, 0.5]


@settings(max_examples=20, deadline=None)
@given(
    arrays(
        np.float32,
        st.tuples(st.integers(0, 4), st.just(5)),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_float32_comes_back(tmp_path_factory: pytest.TempPathFactory, rows: np.ndarray) -> None:
    path = write_prediction(tmp_path_factory.mktemp("there"), "event/a", rows)
    assert np.array_equal(read_prediction(path).astype(np.float32), rows)


def test_width_of_ppdet() -> None:
    assert xywh_of(np.array([[10, 20, 10, 39, 0.5]], np.float32)).tolist() == [[10, 20, 1, 20, 0.5]]
    assert xywh_of(np.zeros((0, 5))).shape == (0, 5)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("0--Parade/a.jpg", "0--Parade/a"),
        ("0--Parade/a.b.JPG", "0--Parade/a.b"),
        ("0--Parade/a.b", "0--Parade/a.b"),
        ("a.jpg.png", "a.jpg"),
        ("a.jpeg", "a"),
        ("./e.v/a", "e.v/a"),
    ],
)
def test_image_name(path: str, name: str) -> None:
    assert image_name(path) == name


def test_image_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tmp_path / "WIDER_val" / "images"
    assert image_key(images / "0--Parade" / "a.b.png", images) == "0--Parade/a.b"
    monkeypatch.chdir(tmp_path)
    assert image_key("WIDER_val/images/e/a.jpg", images) == "e/a"
    assert image_key(images / "a.jpg", "WIDER_val/images/") == "a"
    with pytest.raises(DataError, match="is not inside image_dir"):
        image_key(tmp_path / "a.jpg", images)
    with pytest.raises(DataError, match="is not inside image_dir"):
        image_key(images, images)


@pytest.mark.parametrize(
    "first", ["0--Parade/a.b.jpg", "a.b.jpg", "a.b", "0--Parade/a.b", "/data/x/a.b.png"]
)
def test_first_line_may_name_the_image_in_any_way(tmp_path: Path, first: str) -> None:
    path = file_of(tmp_path, first, "1", ROW, name="0--Parade/a.b")
    assert len(read_prediction(path)) == 1


def test_dots_blank_ends_and_windows_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a.jpg\r\n1\r\n1 2\t3 4  0.5 \r\n\r\n")
    assert read_prediction(path).tolist() == [[1.0, 2.0, 3.0, 4.0, 0.5]]


@pytest.mark.parametrize(
    ("lines", "phrase"),
    [
        ([], "line 1: expected the name of the image"),
        (["a.jpg"], "line 2: expected the name of the image, then the number"),
        (["a.jpg", ROW], "line 2: expected the name of the image, then the number"),
        (["a.jpg", "-1"], "line 2: expected the name of the image, then the number"),
        (["b.jpg", "1", ROW], "line 1: names the image 'b.jpg'; expected 'a'"),
        (["a.jpg", "2", ROW], "line 2: states 2 detections; 1 rows follow"),
        (["a.jpg", "1", ROW, ROW], "line 2: states 1 detections; 2 rows follow"),
        (["a.jpg", "0", ROW], "line 2: states 0 detections; 1 rows follow"),
        (["a.jpg", "2", ROW, "1 2 3 4"], "line 4: expected 5 finite numbers, found '1 2 3 4'"),
        (["a.jpg", "2", "1 2 3 4", "1 2 3 4"], "line 3: expected 5 finite numbers"),
        (["a.jpg", "2", "1 2 3 4 5 6", ROW], "line 3: expected 5 finite numbers"),
        (["a.jpg", "3", ROW, "", ROW], "line 4: expected 5 finite numbers, found ''"),
        (["a.jpg", "3", ROW, ROW, "1 2 3 4 x"], "line 5: expected 5 finite numbers"),
        (["a.jpg", "2", ROW, "1 2 3 4 nan"], "line 4: expected 5 finite numbers"),
        (["a.jpg", "2", ROW, "inf 2 3 4 0.5"], "line 4: expected 5 finite numbers"),
        (
            ["a.jpg", "1", ROW, "best first"],
            "line 4: expected 5 finite numbers, found 'best first', ",
        ),
        (["a.jpg", "0", "x y w h score"], "found 'x y w h score', where 'x' is text"),
        (["a.jpg", "2", ROW, "1 2 3 4 -inf"], "found '1 2 3 4 -inf'"),
        (["a.jpg", "2", "1_0 2 3 4 0.5", ROW], "line 3: expected 5 finite numbers"),
    ],
)
def test_broken_file(tmp_path: Path, lines: list[str], phrase: str) -> None:
    path = file_of(tmp_path, *lines)
    if not lines:
        path.write_text("")
    with pytest.raises(DataError) as refused:
        read_prediction(path)
    assert phrase in str(refused.value) and str(path) in str(refused.value)
    assert "\n" not in str(refused.value)


def test_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="is not a text file"):
        read_prediction(path)


def test_folder_without_anything(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        find_predictions(tmp_path / "nothing", ["a"])
    with pytest.raises(DataError, match="has no prediction"):
        find_predictions(tmp_path, ["a"])
    (tmp_path / "notes.md").write_text("about")
    with pytest.raises(DataError, match="has no prediction"):
        find_predictions(tmp_path, ["a"])


def test_file_of_no_image_names_the_nearest(tmp_path: Path) -> None:
    file_of(tmp_path, "x", "0", name="0--Parade/0_Parade_12")
    names = ["0--Parade/0_Parade_1", "1--Handshaking/b"]
    with pytest.raises(DataError, match="no image of the ground truth; did you mean '0--Parade/0_"):
        read_predictions(tmp_path, names)


def test_missing_files_are_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file_of(tmp_path, "a.b", "1", ROW, name="e/a.b")
    file_of(tmp_path, "c", "0", name="c")
    with caplog.at_level(logging.WARNING, logger="slim_det"):
        found = dict(read_predictions(tmp_path, ["e/a.b", "e/a", "c", "e/d"]))
    assert {name: len(rows) for name, rows in found.items()} == {"c": 0, "e/a.b": 1}
    assert len(caplog.messages) == 1 and "2 of 4 images have no file" in caplog.messages[0]


def test_nothing_is_said_where_nothing_is_missing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file_of(tmp_path, "a", "1", ROW, name="e/a")
    with caplog.at_level(logging.WARNING, logger="slim_det"):
        assert len(list(read_predictions(tmp_path, ["e/a"]))) == 1
    assert not caplog.messages


def test_rows_of_any_length_that_end_in_a_space(tmp_path: Path) -> None:
    """With checks of memory: numpy 1.23 writes beyond its own for rows of 30 and more characters.

    Such a row crashed the process later, as one with a box at 90000 90000 did.
    """
    program = (
        "from pathlib import Path\n"
        "from slim_det.evaluate.widerface.files import parse_rows\n"
        "for length in range(10, 200):\n"
        "    for end in (' ', '  ', '\\t', ''):\n"
        "        row = '7' * (length - 8) + ' 1 2 3 4' + end\n"
        "        assert parse_rows(Path('x'), [row] * 3, range(3), (5,)).shape == (3, 5)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=process_environment(PYTHONMALLOC="debug"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr

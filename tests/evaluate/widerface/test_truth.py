"""Ground truth of WIDER FACE: `.mat` files made here, a text file with bands, and broken ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from slim_det.core.errors import DataError
from slim_det.evaluate.widerface.truth import (
    BANDS,
    FACES_FILE,
    LIST_FILES,
    read_ground_truth,
    read_mat,
    read_text,
)

FLAGS = "0 0 0 0 0 0 "
TWO_EVENTS = {
    "0--Parade": {"a": [(10, 10, 20, 50), (0, 0, 5, 30)], "b.c": [(1, 2, 3, 4)]},
    "1--Handshaking": {"d": [(5, 6, 7, 8)]},
}
LISTS = ([[1], [], []], [[1, 2], [], []], [[1, 2], [1], [1]])


def cell(values: list) -> np.ndarray:
    """MATLAB's column of cells."""
    column = np.empty((len(values), 1), object)
    for i, value in enumerate(values):
        column[i, 0] = value
    return column


def write_mat(folder: Path, events: dict = TWO_EVENTS, lists: tuple = LISTS) -> Path:
    """The four files; each of the lists has the numbers of the faces of every image, from 1."""
    faces = [
        cell([np.array(rows, np.int32).reshape(-1, 4) for rows in images.values()])
        for images in events.values()
    ]
    content = {
        "event_list": cell(list(events)),
        "file_list": cell([cell(list(images)) for images in events.values()]),
        "face_bbx_list": cell(faces),
    }
    savemat(folder / FACES_FILE, content)
    for name, numbers in zip(LIST_FILES, lists):
        left = iter(numbers)
        cells = [
            cell([np.array(next(left), np.uint8).reshape(-1, 1) for _ in images])
            for images in events.values()
        ]
        savemat(folder / name, {"gt_list": cell(cells)})
    return folder


def text_file(folder: Path, *lines: str) -> Path:
    path = folder / "wider_face_val_bbx_gt.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_mat(tmp_path: Path) -> None:
    truth = read_ground_truth(write_mat(tmp_path))
    assert truth.bands == "official"
    assert truth.names == ("0--Parade/a", "0--Parade/b.c", "1--Handshaking/d")
    assert [rows.tolist() for rows in truth.faces] == [
        [[10, 10, 20, 50], [0, 0, 5, 30]],
        [[1, 2, 3, 4]],
        [[5, 6, 7, 8]],
    ]
    assert [rows.astype(int).tolist() for rows in truth.counted] == [
        [[1, 0], [1, 1], [1, 1]],
        [[0], [0], [1]],
        [[0], [0], [1]],
    ]


def test_mat_with_one_image_and_no_face(tmp_path: Path) -> None:
    truth = read_mat(write_mat(tmp_path, {"e": {"a": []}}, ([[]], [[]], [[]])))
    assert truth.names == ("e/a",)
    assert truth.faces[0].shape == (0, 4) and truth.counted[0].shape == (3, 0)


def test_official_files(shared: Path) -> None:
    """Sizes of the lists as published with the data set: 7211, 13319 and 31958 faces count."""
    folder = shared / "data" / "wider_face_ground_truth"
    if not folder.is_dir():
        pytest.skip("needs the official ground truth")
    truth = read_ground_truth(folder)
    assert len(truth.names) == len(set(truth.names)) == 3226
    assert sum(map(len, truth.faces)) == 39708
    assert sum(rows.sum(axis=1) for rows in truth.counted).tolist() == [7211, 13319, 31958]
    assert truth.names[0] == "0--Parade/0_Parade_marchingband_1_465"


def test_missing_mat_is_named(tmp_path: Path) -> None:
    write_mat(tmp_path)
    (tmp_path / "wider_medium_val.mat").unlink()
    with pytest.raises(DataError, match="lacks wider_medium_val.mat; expected wider_face_val.mat"):
        read_ground_truth(tmp_path)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; expected a folder with wider_face_val"):
        read_ground_truth(tmp_path / "nothing")


@pytest.mark.parametrize("keep", [0, 60, 300])
def test_damaged_mat(tmp_path: Path, keep: int) -> None:
    path = write_mat(tmp_path) / "wider_hard_val.mat"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match="wider_hard_val.mat'") as refused:
        read_mat(tmp_path)
    assert "\n" not in str(refused.value)


def test_mat_without_the_list(tmp_path: Path) -> None:
    write_mat(tmp_path)
    savemat(tmp_path / "wider_easy_val.mat", {"other": np.zeros(3)})
    with pytest.raises(DataError, match="wider_easy_val.mat' has no list 'gt_list'"):
        read_mat(tmp_path)
    savemat(tmp_path / "wider_easy_val.mat", {"gt_list": np.zeros((3, 1))})
    with pytest.raises(DataError, match="wider_easy_val.mat' has no list 'gt_list'"):
        read_mat(tmp_path)


@pytest.mark.parametrize("number", [0, 2])
def test_list_names_a_face_that_is_not_there(tmp_path: Path, number: int) -> None:
    lists = ([[1], [], []], [[1], [], []], [[1], [number], []])
    with pytest.raises(
        DataError, match=f"hard_val.mat': 0--Parade/b.c names face {number}; expected 1 to 1"
    ):
        read_mat(write_mat(tmp_path, TWO_EVENTS, lists))


def test_files_of_two_releases(tmp_path: Path) -> None:
    write_mat(tmp_path)
    savemat(tmp_path / "wider_easy_val.mat", {"gt_list": cell([cell([np.zeros((0, 1))] * 3)])})
    with pytest.raises(DataError, match="wider_easy_val.mat' has other images"):
        read_mat(tmp_path)


def test_text_bands(tmp_path: Path) -> None:
    """Heights at and next to every bound; width plays no part; the last is marked invalid."""
    heights = [50, 49, 30, 29, 10, 9]
    rows = [f"1 2 99 {height} {FLAGS}" for height in heights] + ["1 2 3 80 0 0 0 1 0 0 "]
    truth = read_ground_truth(text_file(tmp_path, "0--Parade/a.b.jpg", "7", *rows))
    assert truth.bands == BANDS == "height>=50/30/10 px"
    assert truth.names == ("0--Parade/a.b",)
    assert truth.faces[0].tolist() == [[1, 2, 99, height] for height in heights] + [[1, 2, 3, 80]]
    assert truth.counted[0].astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
    ]


@pytest.mark.parametrize("zeros", [["0 0 0 0 " + FLAGS], []])
def test_text_images_without_faces(tmp_path: Path, zeros: list[str]) -> None:
    path = text_file(
        tmp_path, "e/a.jpg", "0", *zeros, "b.png", "1", "1 2 3 40 " + FLAGS, "e/c.jpg", "0", *zeros
    )
    truth = read_text(path)
    assert truth.names == ("e/a", "b", "e/c")
    assert [len(rows) for rows in truth.faces] == [0, 1, 0]
    assert [rows.shape for rows in truth.counted] == [(3, 0), (3, 1), (3, 0)]


def test_text_without_any_face(tmp_path: Path) -> None:
    truth = read_text(text_file(tmp_path, "a.jpg", "0"))
    assert truth.faces[0].shape == (0, 4) and truth.counted[0].shape == (3, 0)


def test_text_without_flags_and_with_a_space_in_a_name(tmp_path: Path) -> None:
    truth = read_text(text_file(tmp_path, "e/my 2 a.jpg", "1", "1.5 2 3 30", ""))
    assert truth.names == ("e/my 2 a",) and truth.faces[0].tolist() == [[1.5, 2, 3, 30]]
    assert truth.counted[0].ravel().tolist() == [False, True, True]


A = "1 2 3 4 " + FLAGS


@pytest.mark.parametrize(
    ("lines", "phrase"),
    [
        ([], "is empty"),
        (["a.jpg"], "line 2: expected the number of faces of 'a.jpg', found the end of the file"),
        (["a.jpg", "b.jpg"], "line 2: expected the number of faces of 'a.jpg', found 'b.jpg'"),
        (["a.jpg", A], "line 2: expected the number of faces of 'a.jpg', found '1 2 3 4"),
        (
            ["a.jpg", "3", A, A],
            "line 5: expected 3 rows of faces of 'a.jpg', found 2 before the end of the file",
        ),
        (
            ["a.jpg", "2", A, "b.jpg", "1", A],
            "line 4: expected 2 rows of faces of 'a.jpg', found 1 before 'b.jpg'",
        ),
        (["a.jpg", "1", A, A], "line 4: expected the name of an image, found '1 2 3 4"),
        (["a.jpg", "2", A, "1 2 3 4"], "line 4: expected 10 finite numbers, found '1 2 3 4'"),
        (["a.jpg", "2", "1 2 3", A], "line 3: expected 4 or 10 finite numbers"),
        (["a.jpg", "2", A, "1 2 x 4 " + FLAGS], "line 4: expected 10 finite numbers"),
        (["a.jpg", "2", A, "1 2 nan 4 " + FLAGS], "line 4: expected 10 finite numbers"),
        (["a.jpg", "2", A, "1 2 3 -4 " + FLAGS], "line 4: expected a width and a height of at"),
        (["e/a.jpg", "0", "e/a.png", "0"], "has the image 'e/a' twice"),
    ],
)
def test_broken_text(tmp_path: Path, lines: list[str], phrase: str) -> None:
    path = text_file(tmp_path, *lines)
    with pytest.raises(DataError) as refused:
        read_ground_truth(path)
    assert phrase in str(refused.value) and str(path) in str(refused.value)
    assert "\n" not in str(refused.value)

"""Images prepared as `infer_cfg.yml` says, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_det.core.errors import DataError, ExportError
from slim_det.evaluate.preprocess import ArtifactReader, at_size, pad_to_stride

RESIZE = {"type": "Resize", "target_size": [4, 8], "keep_ratio": False, "interp": 1}
NORMALIZE = {
    "type": "NormalizeImage",
    "mean": [0.5, 0.0, 0.0],
    "std": [0.5, 1.0, 2.0],
    "is_scale": True,
}
PERMUTE = {"type": "Permute"}


@pytest.fixture
def picture(tmp_path: Path) -> str:
    """Two rows and four columns of one colour: red 255, green 51, blue 102."""
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), np.full((2, 4, 3), (102, 51, 255), np.uint8))
    return str(path)


def read(picture: str, *steps: dict[str, Any]) -> dict[str, np.ndarray]:
    return ArtifactReader({"Preprocess": list(steps)})(picture)


def test_values_by_hand(picture: str) -> None:
    """RGB; red (1 - 0.5) / 0.5, green 0.2 / 1, blue 0.4 / 2."""
    batch = read(picture, RESIZE, NORMALIZE, PERMUTE)
    assert batch["image"].shape == (1, 3, 4, 8) and batch["image"].dtype == np.float32
    for channel, value in enumerate((1.0, 0.2, 0.2)):
        assert batch["image"][0, channel] == pytest.approx(np.full((4, 8), value), abs=1e-6)
    assert batch["im_shape"].tolist() == [[4.0, 8.0]]
    assert batch["scale_factor"].tolist() == [[2.0, 2.0]]


def test_no_steps(picture: str) -> None:
    batch = read(picture)
    assert batch["image"][0, 0, 0].tolist() == [255.0, 51.0, 102.0]
    assert batch["scale_factor"].tolist() == [[1.0, 1.0]]


def test_steps_are_done_in_their_order_and_as_often_as_named(picture: str) -> None:
    twice = read(picture, NORMALIZE, NORMALIZE, PERMUTE)["image"]
    assert twice[0, 0, 0, 0] == pytest.approx((1 / 255 - 0.5) / 0.5, abs=1e-6)


def test_padding_to_a_stride(picture: str) -> None:
    batch = read(picture, PERMUTE, {"type": "PadStride", "stride": 8})
    assert batch["image"].shape == (1, 3, 8, 8)
    assert batch["image"][0, :, 2:].max() == 0.0 and batch["image"][0, 0, 0, 3] == 255.0


@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 5))
def test_padding_keeps_the_image(height: int, width: int, stride: int) -> None:
    image = np.ones((1, height, width), np.float32)
    padded = pad_to_stride(image, stride)
    assert np.array_equal(padded[:, :height, :width], image) and padded.sum() == image.sum()
    if stride:
        assert all(
            side % stride == 0 and side - given < stride
            for side, given in zip(padded.shape[1:], (height, width))
        )


def test_other_size(picture: str) -> None:
    settings = {"Preprocess": [RESIZE, PERMUTE], "arch": "YOLO"}
    other = at_size(settings, (6, 10))
    assert ArtifactReader(other)(picture)["image"].shape == (1, 3, 6, 10)
    assert settings["Preprocess"][0] is RESIZE and RESIZE["target_size"] == [4, 8]
    assert other["arch"] == "YOLO"


def test_other_size_of_images_that_are_padded(picture: str) -> None:
    pad = {"type": "Pad", "size": [8, 8], "fill_value": [0.0, 0.0, 0.0]}
    resize = {**RESIZE, "target_size": [8, 8], "keep_ratio": True}
    other = at_size({"Preprocess": [resize, pad, PERMUTE], "arch": "YOLO"}, (12, 12))
    assert ArtifactReader(other)(picture)["image"].shape == (1, 3, 12, 12)
    assert pad["size"] == [8, 8]


@pytest.mark.parametrize(
    ("step", "phrase"),
    [
        ({"type": "Resise"}, "unknown step 'Resise'; did you mean 'Resize'?"),
        ({}, "unknown step 'None'"),
        ({"type": "Resize"}, "step 'Resize' has invalid settings"),
        ({"type": "NormalizeImage", "average": 1}, "has invalid settings"),
    ],
)
def test_steps_that_are_refused(step: dict[str, Any], phrase: str) -> None:
    with pytest.raises(ExportError, match="infer_cfg.yml") as caught:
        ArtifactReader({"Preprocess": [step]})
    assert phrase in str(caught.value)


def test_file_that_is_no_image(tmp_path: Path) -> None:
    """One line that names the file and the step; so does a step that fails."""
    path = tmp_path / "text.jpg"
    path.write_text("text")
    with pytest.raises(DataError, match="text.jpg' cannot be read: Decode fails"):
        read(str(path), PERMUTE)
    with pytest.raises(DataError, match="gone.jpg' cannot be read: Decode fails"):
        read(str(tmp_path / "gone.jpg"), PERMUTE)


def test_step_that_fails(picture: str) -> None:
    with pytest.raises(DataError, match=r"picture.png' cannot be read: NormalizeImage fails \("):
        read(picture, PERMUTE, {**NORMALIZE, "mean": [0.5, 0.0], "std": [0.5, 1.0]})


def test_boxes_are_scaled_with_their_image(picture: str) -> None:
    """What the loader of an evaluation hands over; two by four pixels become four by eight."""
    reader = ArtifactReader({"Preprocess": [RESIZE, PERMUTE]})
    sample = {"im_file": picture, "im_id": np.array([7]), "gt_bbox": np.float32([[0, 0, 2, 1]])}
    found = reader.prepare(sample)
    assert found["image"].shape == (3, 4, 8) and found["image"].dtype == np.float32
    assert found["gt_bbox"].tolist() == [[0, 0, 4, 2]] and found["im_id"] == 7
    (path, batch) = next(reader.batches([picture]))
    assert path == picture and np.array_equal(batch["image"][0], found["image"])

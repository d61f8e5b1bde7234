"""Boxes under their names, and on the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from slim_det.cli.infer import draw_boxes, named_boxes, side_by_side
from slim_det.core.errors import ExportError
from slim_det.evaluate.detections import parse_detections
from tests.detections import found_in

NAMES = {0: "circle", 1: "square"}


def test_boxes_are_named() -> None:
    found = named_boxes(NAMES, found_in([1, 0.75, 1, 2, 3, 4]))
    assert found == [{"label": "square", "score": 0.75, "bbox_xyxy": [1.0, 2.0, 3.0, 4.0]}]


def test_class_without_a_name() -> None:
    with pytest.raises(ExportError, match="class 2 was found, and there are names for 2 classes"):
        named_boxes(NAMES, found_in([2, 0.75, 1, 2, 3, 4]))


@pytest.mark.parametrize("nothing", [np.array([[-1.0]]), np.zeros((0, 6))])
def test_no_box(nothing: np.ndarray) -> None:
    """Paddle's NMS gives one row of a single -1."""
    (found,) = parse_detections({"bbox": nothing, "bbox_num": np.array([0])})
    assert named_boxes(NAMES, found) == []


def test_frame_is_drawn_where_the_box_is(tmp_path: Path) -> None:
    """Two pixels wide on its edge; what lies inside and around is left as it was."""
    path = tmp_path / "grey.png"
    Image.new("L", (80, 60), 90).save(path)
    box = {"label": "square", "score": 0.5, "bbox_xyxy": [20.0, 20.0, 60.0, 50.0]}
    drawn = np.asarray(draw_boxes(str(path), [box]))
    assert drawn.shape == (60, 80, 3)
    grey = (drawn == 90).all(axis=2)
    assert not grey[20:50, 20].any() and not grey[50, 20:60].any() and not grey[20:50, 60].any()
    assert grey[24:47, 24:57].all() and grey[52:].all() and grey[22:, 63:].all()


def test_picture_is_turned_upright(tmp_path: Path) -> None:
    """A photograph that says it lies on its side is drawn as it is seen."""
    path = tmp_path / "turned.jpg"
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: turn clockwise to see it upright
    image.save(path, exif=exif)
    assert draw_boxes(str(path), []).size == (20, 40)


def test_sixteen_bits(tmp_path: Path) -> None:
    """Drawn as bright as it is, not white."""
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 5), 90 * 257, np.uint16)).save(path)
    assert (np.asarray(draw_boxes(str(path), [])) == 90).all()


def test_side_by_side() -> None:
    red, blue = (Image.new("RGB", (3, 2), color) for color in ((255, 0, 0), (0, 0, 255)))
    row = np.asarray(side_by_side([red, blue], gap=2))
    assert row.shape == (2, 8, 3)
    assert (row[:, :3] == (255, 0, 0)).all() and (row[:, 5:] == (0, 0, 255)).all()
    assert (row[:, 3:5] == 255).all()
    assert (np.asarray(side_by_side([red])) == np.asarray(red)).all()

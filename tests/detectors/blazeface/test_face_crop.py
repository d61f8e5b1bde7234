"""Crops of faces: what is kept, where it goes, and what ppdet's operator loses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slim_det.core.errors import ConfigError, DataError
from slim_det.detectors.blazeface.face_crop import CropWithDataAchorSampling

FREE = [1, 20, 1, 1, 1, 1, 0, 0, 0, 0]
WHOLE_FACE = [1, 50, 0.3, 1, 1, 1, 0, 0, 1, 0]
SOME_OF_A_FACE = [1, 10, 1, 1, 1, 1, 0, 0, 0.2, 0]


def sample_with(boxes: list[list[float]], height: int = 60, width: int = 80) -> dict[str, Any]:
    """Faces are white on black; the class of a face is its number, to recognise it."""
    image = np.zeros((height, width, 3), "float32")
    for x1, y1, x2, y2 in np.asarray(boxes, int).reshape(-1, 4):
        image[y1:y2, x1:x2] = 255
    return {
        "image": image,
        "gt_bbox": np.asarray(boxes, "float32").reshape(-1, 4),
        "gt_class": np.arange(len(boxes), dtype="int32").reshape(-1, 1),
    }


def by_scale(*rows: list[float], **keys: Any) -> CropWithDataAchorSampling:
    return CropWithDataAchorSampling(rows, target_size=64, sampling_prob=1.0, **keys)


def by_anchor(**keys: Any) -> CropWithDataAchorSampling:
    keys = {"target_size": 64, "sampling_prob": 0.0, **keys}
    return CropWithDataAchorSampling([FREE], [SOME_OF_A_FACE], **keys)


@pytest.fixture(autouse=True)
def seeded() -> None:
    np.random.seed(3)


@pytest.mark.parametrize("operator", [by_scale(WHOLE_FACE), by_anchor()])
def test_an_image_without_faces_stays(operator):
    before = sample_with([])
    after = operator(sample_with([]))
    np.testing.assert_array_equal(after["image"], before["image"])
    assert after["gt_bbox"].shape == (0, 4)


@pytest.mark.parametrize("operator", [by_scale(WHOLE_FACE), by_anchor()])
def test_where_no_crop_is_found_boxes_stay_in_pixels(operator):
    """A face of two pixels is smaller than `min_size` in every crop of the image."""
    before = sample_with([[10, 10, 10, 12]])
    after = operator(sample_with([[10, 10, 10, 12]]))
    assert after["image"].shape == before["image"].shape
    np.testing.assert_array_equal(after["gt_bbox"], before["gt_bbox"])


def test_the_only_crop_of_a_square_image_is_the_image():
    before = sample_with([[10, 20, 30, 40], [40, 40, 60, 60]], height=60, width=60)
    after = by_scale(FREE)(sample_with([[10, 20, 30, 40], [40, 40, 60, 60]], 60, 60))
    np.testing.assert_array_equal(after["image"], before["image"])
    np.testing.assert_allclose(after["gt_bbox"], before["gt_bbox"], rtol=1e-6)
    assert after["gt_class"].ravel().tolist() == [0, 1]


def test_faces_outside_or_too_small_are_left_out():
    """The left 60 columns: a face whose centre is in, one whose centre is out, one of 4 pixels."""
    operator = by_scale(FREE)
    boxes = np.array([[50.0, 10, 68, 30], [55, 10, 75, 30], [5, 5, 9, 9]])
    kept, moved = operator._boxes_inside(np.array([0, 0, 60, 60]), boxes)
    assert kept.tolist() == [True, False, False]
    np.testing.assert_allclose(moved[0] * 60, [50, 10, 60, 30])


@pytest.mark.parametrize(
    ("row", "good"),
    [
        ([0, 0, 0, 0], True),
        ([0, 0, 0.5, 0], True),  # half of the face is covered
        ([0, 0, 0.6, 0], False),
        ([0, 0, 0, 0.4], False),
        ([0.1, 0, 0, 0], False),  # IoU is 200 / (400 + 3600 - 200)
        ([0.05, 0.06, 0.5, 0.5], True),
        ([0.05, 0.06, 0.6, 0], False),
    ],
)
def test_bounds_of_a_row(row: list[float], good: bool):
    """A square of 60 pixels covers one half of a face of 20."""
    from slim_det.detectors.blazeface.face_crop import _with_a_face

    crops, boxes = np.array([[0, 0, 60, 60]]), np.array([[50.0, 10, 70, 30]])
    assert _with_a_face([1, 1, 1, 1, 1, 1, *row], crops, boxes).tolist() == [good]


def test_a_face_gets_the_size_of_an_anchor():
    """24 pixels are aimed at 8, 16 or 32: widths from half of 8 to twice 24, never of 128."""
    operator = by_anchor(das_anchor_scales=[8, 16, 32, 64], min_size=0)
    widths = []
    for _ in range(200):
        after = operator(sample_with([[30, 20, 54, 44]]))
        assert after["image"].shape == (64, 64, 3)
        x1, y1, x2, y2 = after["gt_bbox"][0]
        if min(x1, y1) > 0 and max(x2, y2) < 64:
            widths.append(x2 - x1)
    assert min(widths) == pytest.approx(4, abs=2) and max(widths) == pytest.approx(48, abs=4)
    assert len(widths) > 100


def test_an_enormous_crop_takes_no_memory():
    """A face of 1,500 pixels that is to get 8: a square of 120,000 pixels, almost all outside."""
    boxes = [[100, 100, 1600, 1600]]
    operator = by_anchor(target_size=640, das_anchor_scales=[16], min_size=0)
    after = operator(sample_with(boxes, 1700, 1700))
    assert after["image"].shape == (640, 640, 3)
    assert 7 <= after["gt_bbox"][0, 2] - after["gt_bbox"][0, 0] <= 33


@settings(max_examples=60, deadline=None)
@given(
    face=st.tuples(st.integers(0, 60), st.integers(0, 40), st.integers(6, 20), st.integers(6, 20)),
    seed=st.integers(0, 10**6),
    anchor=st.booleans(),
)
def test_the_box_stays_on_the_face(face: tuple[int, int, int, int], seed: int, anchor: bool):
    """Whatever is cropped, white pixels are where the box says, within a pixel of rounding."""
    x, y, w, h = face
    np.random.seed(seed)
    operator = by_anchor(min_size=2) if anchor else by_scale(WHOLE_FACE, min_size=2)
    after = operator(sample_with([[x, y, x + w, y + h]]))
    assert len(after["gt_bbox"]) == 1
    rows, columns = np.nonzero(after["image"][:, :, 0] > 127)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    slack = 1.5 + 0.5 * after["image"].shape[0] / 20
    np.testing.assert_allclose(after["gt_bbox"][0], found, atol=slack)


@pytest.mark.parametrize("row", [[1, 1, 1], [1, 1, 1, 1, 0.5, 2, 0, 0, 1, 0]])
def test_wrong_rows_are_refused(row: list[float]):
    with pytest.raises(ConfigError, match="ten numbers"):
        CropWithDataAchorSampling([row])


def test_landmarks_are_refused():
    with pytest.raises(DataError, match="with_lmk: false"):
        by_scale(FREE)({**sample_with([]), "gt_keypoint": np.zeros((0, 10))})


def test_it_is_registered_under_the_name_of_ppdet(ppdet_registered: None):
    import ppdet.data.transform as transforms

    assert transforms.CropWithDataAchorSampling is CropWithDataAchorSampling

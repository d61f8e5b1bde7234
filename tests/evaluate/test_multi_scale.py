"""The views of an image, and box voting, worked out by hand."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import paddle
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slim_det.core.errors import ConfigError
from slim_det.evaluate import multi_scale
from slim_det.evaluate.multi_scale import MultiScale, View, max_scale, normalization, views, vote
from slim_det.training.config import load_config
from tests.blazeface import draw_faces, write_blazeface
from tests.detections import rows_of

NONE = np.zeros((0, 5))


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        (768, 1024, 1.47),  # root 1.879: 1.87 - 0.30 - 0.10
        (300, 400, 4.11),  # root 4.810: 4.81 - 0.30 - 0.40
        (2000, 3000, 0.38),  # root 0.680: 0.68 - 0.30
        (512, 1024, 1.8),  # root 2.301: exactly 2.00 are left, and 0.20 taken off
        (576, 822, 1.92),  # root 2.421: 2.42 - 0.30 - 0.20
        (1000, 1000, 1.36),  # root 1.666: 1.36 is below 1.5
        (96, 96, 16.55),  # root 17.358: 17.35 - 0.30 - 0.50
        (1, 1, 1665.65),  # root 1666.459: the same, far out
        (10000, 10000, 0.1),  # root 0.166: the least
    ],
)
def test_largest_scale(height: int, width: int, expected: float) -> None:
    assert max_scale(height, width) == max_scale(width, height) == pytest.approx(expected)


def scales(limit: float) -> list[float]:
    first, mirrored, *others = views(limit)
    assert first == View(min(1.0, limit), flip=False, by_size=False)
    assert mirrored == View(min(1.0, limit), flip=True, by_size=False)
    assert all(view.by_size and not view.flip for view in others)
    return [view.scale for view in others]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1.47, [0.5, 1.47, 0.25, 0.75, 1.25]),
        (2.0, [0.5, 2.0, 0.25, 0.75, 1.25, 1.5, 1.75]),
        (4.11, [0.5, 2.0, 4.0, 4.11, 0.25, 0.75, 1.25, 1.5, 1.75]),
        (4.0, [0.5, 2.0, 4.0, 0.25, 0.75, 1.25, 1.5, 1.75]),
        (1.0, [0.5, 0.75, 0.25, 0.75]),
        (0.38, [0.19, 0.285, 0.25]),
        (0.75, [0.5, 0.625, 0.25, 0.75]),
    ],
)
def test_views(limit: float, expected: list[float]) -> None:
    assert scales(limit) == pytest.approx(expected)


@given(st.integers(1, 12000), st.integers(1, 12000))
def test_no_copy_is_larger_than_the_limit(height: int, width: int) -> None:
    """Except one quarter, which is always included."""
    limit = max_scale(height, width)
    assert max(view.scale for view in views(limit)) <= max(limit, 0.25)


def test_sizes_that_a_scale_is_good_for() -> None:
    """Sides count their pixels: 29 apart are 30."""
    sides = [(29, 10), (30, 10), (98, 200), (99, 200)]
    boxes = np.array([[5, 7, 5 + w, 7 + h, 0.5] for w, h in sides], float)
    assert multi_scale.keep_by_size(boxes, 0.5).tolist() == boxes[1:].tolist()
    assert multi_scale.keep_by_size(boxes, 1.25).tolist() == boxes[:3].tolist()
    assert multi_scale.keep_by_size(NONE, 2.0).shape == (0, 5)


def test_mirror() -> None:
    boxes = np.array([[0, 1, 10, 20, 0.9], [60, 2, 100, 30, 0.8]])
    flipped = multi_scale.flip_boxes(boxes, 100)
    assert flipped.tolist() == [[90, 1, 100, 20, 0.9], [0, 2, 40, 30, 0.8]]
    assert multi_scale.flip_boxes(flipped, 100).tolist() == boxes.tolist()
    assert boxes[0, 0] == 0


def test_vote_of_none_and_of_one() -> None:
    assert vote(NONE).shape == (0, 5)
    one = [[3.5, 4, 20, 30, 0.7]]
    assert vote(np.array(one)).tolist() == one


def test_two_that_overlap_become_their_weighted_mean() -> None:
    """0.6 and 0.2: three parts of the first, one of the second; the better score stays."""
    boxes = np.array([[4, 0, 14, 8, 0.2], [0, 0, 10, 12, 0.6]])
    assert np.allclose(vote(boxes), [[1, 0, 11, 11, 0.6]])


def test_two_of_equal_scores_meet_in_the_middle() -> None:
    assert np.allclose(
        vote(np.array([[4, 0, 14, 8, 0.5], [0, 0, 10, 12, 0.5]])), [[2, 0, 12, 10, 0.5]]
    )


def test_two_apart_stay_best_first() -> None:
    boxes = np.array([[0, 0, 10, 10, 0.3], [50, 50, 60, 60, 0.9]])
    assert vote(boxes).tolist() == boxes[::-1].tolist()


def test_a_box_alone_between_groups_is_kept() -> None:
    boxes = [[0, 0, 9, 9, 0.9], [50, 0, 59, 9, 0.8], [0, 0, 9, 9, 0.7], [90, 0, 99, 9, 0.6]]
    assert vote(np.array(boxes, float)).tolist() == [boxes[0], boxes[1], boxes[3]]


def test_overlap_of_exactly_three_tenths() -> None:
    """13 pixels wide, 6 shared of 20; one row further apart they are two."""
    first = [0, 0, 12, 0, 0.9]
    assert len(vote(np.array([first, [7, 0, 19, 0, 0.5]], float))) == 1
    assert len(vote(np.array([first, [8, 0, 20, 0, 0.5]], float))) == 2


def test_least_score_and_most_boxes() -> None:
    apart = np.array([[30 * i, 0, 30 * i + 9, 9, 0.9 - i / 1000] for i in range(800)])
    assert vote(apart).tolist() == apart[:750].tolist()
    apart[:, 4] = [0.01, 0.0099] * 400
    assert vote(apart)[:, 4].tolist() == [0.01] * 400
    assert vote(apart * [1, 1, 1, 1, 0]).shape == (0, 5)


@given(st.lists(st.tuples(*[st.integers(0, 60)] * 2, *[st.integers(1, 30)] * 2), max_size=20))
def test_vote_stays_within_what_it_was_given(places: list[tuple[int, int, int, int]]) -> None:
    boxes = np.array(
        [[x, y, x + w, y + h, 0.99 - i / 100] for i, (x, y, w, h) in enumerate(places)], float
    ).reshape(-1, 5)
    voted = vote(boxes)
    assert set(voted[:, 4]) <= set(boxes[:, 4])
    assert (np.diff(voted[:, 4]) < 0).all()
    if len(boxes):
        assert voted[0, 4] == boxes[0, 4]
        assert (voted[:, :4] >= boxes[:, :4].min(axis=0) - 1e-9).all()
        assert (voted[:, :4] <= boxes[:, :4].max(axis=0) + 1e-9).all()


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_faces(tmp_path_factory.mktemp("faces") / "set")


@pytest.fixture
def cfg(fresh_config: Any, faces: Path, tmp_path: Path) -> Any:
    return load_config(write_blazeface(tmp_path / "face.yml", faces))


class OneBright(paddle.nn.Layer):
    """Finds the bright rectangle of an image, as a detector would, in original pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, int]] = []

    def forward(self, batch: dict[str, Any]) -> dict[str, paddle.Tensor]:
        image = batch["image"].numpy()[0, 0]
        assert batch["im_shape"].numpy()[0].tolist() == list(image.shape)
        self.sizes.append(image.shape)
        ys, xs = np.nonzero(image > 0)
        scale_y, scale_x = batch["scale_factor"].numpy()[0].astype(float)
        low, high = (
            (xs.min() / scale_x, ys.min() / scale_y),
            (
                (xs.max() + 1) / scale_x,
                (ys.max() + 1) / scale_y,
            ),
        )
        row = np.array([[0, 0.8, *low, *high]], np.float32)
        return {"bbox": paddle.to_tensor(row), "bbox_num": paddle.to_tensor([1])}


def test_a_rectangle_is_found_at_every_size(cfg: Any) -> None:
    """Coordinates come back from every scale and from the mirror; odd sides are rounded down."""
    image = np.zeros((301, 403, 3), np.uint8)
    image[40:120, 100:160] = 255
    model = OneBright()
    found = MultiScale(model, cfg).detect(image)
    assert found.shape == (1, 5) and found[0, 4] == pytest.approx(0.8)
    assert np.abs(found[0, :4] - [100, 40, 160, 120]).max() < 2
    limit = max_scale(301, 403)
    wanted = [(int(301 * view.scale), int(403 * view.scale)) for view in views(limit)]
    assert model.sizes == wanted and len(wanted) == len(views(limit)) > 8
    assert not model.training


class Nothing(paddle.nn.Layer):
    def forward(self, batch: dict[str, Any]) -> dict[str, paddle.Tensor]:
        return {"bbox": paddle.full([1, 1], -1.0), "bbox_num": paddle.zeros([1], "int32")}


def test_nothing_found_at_all(cfg: Any) -> None:
    found = MultiScale(Nothing(), cfg)({"im_id": np.array([[2], [0]])})
    assert [len(boxes) for boxes in found] == [0, 0]


def test_batch_of_images(cfg: Any, faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each image by its own number, as its file has it, and red first."""
    seen = []

    def detect(self: MultiScale, image: np.ndarray) -> np.ndarray:
        seen.append(image)
        return np.array([[1, 2, 3, 4, 0.5]] * len(seen))

    monkeypatch.setattr(MultiScale, "detect", detect)
    found = MultiScale(Nothing(), cfg)({"im_id": np.array([[4], [1]])})
    assert [rows_of(boxes).tolist() for boxes in found] == [
        [[0, 0.5, 1, 2, 3, 4]] * count for count in (1, 2)
    ]
    for number, image in zip((4, 1), seen):
        expected = cv2.imread(str(faces / "images" / "0--val" / f"face_{number}.jpg"))
        assert (image == expected[:, :, ::-1]).all()


def test_normalization_is_the_readers(cfg: Any) -> None:
    """From either list of transforms; black becomes minus mean over deviation."""
    reader = cfg["EvalReader"]
    black = np.zeros((2, 2, 3), np.uint8)
    step = next(s for s in reader["sample_transforms"] if "NormalizeImage" in s)
    values = normalization(cfg).apply({"image": black})["image"]
    mean, std = (np.array(step["NormalizeImage"][key]) for key in ("mean", "std"))
    assert np.allclose(values, -mean / std)
    reader["sample_transforms"] = [{"Decode": {}}]
    reader["batch_transforms"] = [{"NormalizeImage": {"mean": [1], "std": [4], "is_scale": False}}]
    assert np.allclose(normalization(cfg).apply({"image": black})["image"], -0.25)
    reader["batch_transforms"] = []
    with pytest.raises(ConfigError, match="EvalReader has no NormalizeImage"):
        normalization(cfg)


def test_detectors_of_one_size() -> None:
    with pytest.raises(ConfigError, match="needs metric: WiderFace; .* has metric: COCO"):
        multi_scale.require_any_size(SimpleNamespace(metric="COCO", architecture="YOLOv3"))
    with pytest.raises(ConfigError, match="any size .BlazeFace.; .* has architecture: YOLOv3"):
        multi_scale.require_any_size(SimpleNamespace(metric="WiderFace", architecture="YOLOv3"))

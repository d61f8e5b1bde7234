"""One drawn image: its ground truth is exact, and it is neither trivial nor arbitrary."""

from __future__ import annotations

import numpy as np
import pytest

from slim_det.demo.scene import CLASS_NAMES, LUMA_BGR, Scene, box_overlaps, draw_scene


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Images of the default size and of odd ones."""
    sizes = [(160, 160)] * 120 + [(64, 64)] * 20 + [(65, 201)] * 20 + [(201, 65)] * 20
    return [draw_scene(0, index, size) for index, size in enumerate(sizes)]


def test_pixels_outside_the_objects_are_the_background(scenes: list[Scene]) -> None:
    """The ground truth leaves nothing out: what is not in a box was not drawn on."""
    for scene in scenes:
        outside = np.ones(scene.owner.shape, bool)
        for x1, y1, x2, y2 in scene.boxes.tolist():
            outside[y1:y2, x1:x2] = False
        assert np.array_equal(scene.image[outside], scene.background[outside])
        free = scene.owner == 0
        assert np.array_equal(scene.image[free], scene.background[free])


def test_boxes_are_tight_around_what_is_seen(scenes: list[Scene]) -> None:
    """Every edge of a box touches a pixel of its object that differs from the background."""
    for scene in scenes:
        changed = (scene.image != scene.background).any(axis=2)
        assert scene.owner.max() == len(scene.boxes) == len(scene.labels)
        for number, box in enumerate(scene.boxes.tolist(), start=1):
            rows, cols = np.nonzero((scene.owner == number) & changed)
            assert box == [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]


def test_boxes_are_integer_inside_and_of_sensible_size(scenes: list[Scene]) -> None:
    """One pixel stays free at each border, and no box is degenerate."""
    for scene in scenes:
        height, width = scene.owner.shape
        assert scene.boxes.dtype == np.int64
        assert 1 <= len(scene.boxes) <= 5
        assert (scene.boxes[:, :2] >= 1).all()
        assert (scene.boxes[:, 2:] <= [width - 1, height - 1]).all()
        sides = scene.boxes[:, 2:] - scene.boxes[:, :2]
        longer = sides.max(axis=1)
        assert (longer >= 0.15 * min(height, width) - 1.0).all()
        assert (longer <= 0.60 * min(height, width) + 1.0).all()
        assert (sides.min(axis=1) >= 0.7 * longer - 1.0).all()


def test_boxes_overlap_little(scenes: list[Scene]) -> None:
    """No pair of boxes reaches an IoU of 0.2, yet some do overlap."""
    largest = 0.0
    for scene in scenes:
        for number, box in enumerate(scene.boxes):
            others = np.delete(scene.boxes, number, axis=0)
            largest = max([largest, *box_overlaps(box, others).tolist()])
    assert 0.0 < largest < 0.2


def test_box_overlaps_on_known_boxes() -> None:
    """Half, all and nothing of the smaller box."""
    box = np.array([0, 0, 10, 10])
    others = np.array([[5, 0, 15, 10], [2, 2, 6, 6], [10, 0, 20, 10]])
    assert box_overlaps(box, others).tolist() == [0.5, 1.0, 0.0]


def test_objects_stand_out_from_the_background(scenes: list[Scene]) -> None:
    """The mean luma of an object differs visibly from the background that it covers."""
    for scene in scenes:
        for number in range(1, len(scene.boxes) + 1):
            pixels = scene.owner == number
            inside = (scene.image[pixels] @ LUMA_BGR).mean()
            behind = (scene.background[pixels] @ LUMA_BGR).mean()
            assert abs(inside - behind) > 25.0


def test_filled_area_tells_the_outlines_apart() -> None:
    """A label means its outline: upright shares of the box are known from geometry."""
    shares: dict[int, list[float]] = {label: [] for label in range(len(CLASS_NAMES))}
    for index in range(60):
        scene = draw_scene(1, index, (320, 320))
        for number, label in enumerate(scene.labels.tolist(), start=1):
            x1, y1, x2, y2 = scene.boxes[number - 1].tolist()
            shares[label].append((scene.owner == number).sum() / ((x2 - x1) * (y2 - y1)))
    circle, square, triangle, cross = (shares[label] for label in range(4))
    assert np.allclose(circle, np.pi / 4.0, atol=0.04)
    # A square tilted by t fills 1 / (sin t + cos t)^2 of its box, for t up to 20 degrees.
    assert 0.58 < min(square) < 0.7 and 0.95 < max(square) <= 1.0
    assert 0.38 < min(triangle) and max(triangle) < 0.54
    assert 0.3 < min(cross) and max(cross) < 0.68


def test_every_class_comes_small_and_large() -> None:
    """The default data set holds each class below 20 % and above 40 % of the image side."""
    sides: dict[int, list[float]] = {label: [] for label in range(len(CLASS_NAMES))}
    for index in range(240, 300):
        scene = draw_scene(0, index, (160, 160))
        for box, label in zip(scene.boxes, scene.labels.tolist()):
            sides[label].append((box[2:] - box[:2]).max() / 160.0)
    for values in sides.values():
        assert len(values) >= 15
        assert min(values) < 0.2 and max(values) > 0.4


def test_colour_says_nothing_about_the_class() -> None:
    """The mean colour of a class lies within the spread of chance around that of all."""
    colours, labels = [], []
    for index in range(250):
        scene = draw_scene(2, index, (64, 64))
        for number, label in enumerate(scene.labels.tolist(), start=1):
            colours.append(scene.image[scene.owner == number].mean(axis=0))
            labels.append(label)
    values, classes = np.array(colours), np.array(labels)
    for label in range(len(CLASS_NAMES)):
        own = values[classes == label]
        error = values.std(axis=0) / np.sqrt(len(own))
        assert (abs(own.mean(axis=0) - values.mean(axis=0)) < 4.0 * error).all()


def test_backgrounds_are_textured_and_varied(scenes: list[Scene]) -> None:
    """No background is flat, and their mean colours spread widely."""
    means = np.array([scene.background.mean(axis=(0, 1)) for scene in scenes])
    assert (means.std(axis=0) > 40.0).all()
    assert all(scene.background.std(axis=(0, 1)).max() > 3.0 for scene in scenes)


def test_same_arguments_draw_the_same_image() -> None:
    """A scene depends on seed, place and size, and on each of them."""
    first, again = draw_scene(5, 7, (80, 96)), draw_scene(5, 7, (80, 96))
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.boxes, again.boxes)
    assert not np.array_equal(first.image, draw_scene(6, 7, (80, 96)).image)
    assert not np.array_equal(first.image, draw_scene(5, 8, (80, 96)).image)
    turned = draw_scene(5, 7, (96, 80))
    assert not np.array_equal(first.image.reshape(-1), turned.image.reshape(-1))
    with pytest.raises(ValueError):
        draw_scene(-1, 0, (80, 96))

"""The image size comes from the readers, and is one that the architecture can take."""

from __future__ import annotations

from typing import Any

import pytest

from slim_det.core.errors import ConfigError
from slim_det.detectors.image_size import (
    OPEN_HW,
    has_open_size,
    image_size_hw,
    program_size_hw,
    target_size_hw,
)


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, (608, 608)),
        ({"TestReader": {"inputs_def": {"image_shape": [3, 320, 416]}}}, (320, 416)),
        ({"TestReader": {"inputs_def": {"image_shape": [3, -1, -1]}}, **{}}, (608, 608)),
        ({"EvalReader": {"sample_transforms": [{"Resize": {"target_size": [64, 96]}}]}}, (64, 96)),
        ({"EvalReader": {"sample_transforms": [{"Resize": {"target_size": 64}}]}}, (64, 64)),
    ],
)
def test_image_size(settings: dict[str, Any], size: tuple[int, int]) -> None:
    """Of the test reader, else of the evaluation, else the published one; a request wins."""
    assert image_size_hw(settings) == size
    assert image_size_hw(settings, 416) == (416, 416)


@pytest.mark.parametrize(
    ("target", "stride", "size"),
    [([800, 1333], 32, (800, 1344)), ([800, 1333], -1, (800, 1333)), ([64, 96], 32, (64, 96))],
)
def test_padded_image_size(target: list[int], stride: int, size: tuple[int, int]) -> None:
    """Images that keep their ratio are padded to at most this size."""
    reader = {
        "sample_transforms": [{"Decode": {}}, {"Resize": {"target_size": target}}],
        "batch_transforms": [{"PadBatch": {"pad_to_stride": stride}}, {"Gt2YoloTarget": None}],
    }
    assert image_size_hw({"EvalReader": reader}) == size


def ratio_kept(**more: Any) -> dict[str, Any]:
    """Readers as of two-stage detectors; the evaluation has another size."""
    resize = {"Resize": {"target_size": [800, 1333], "keep_ratio": True}}
    pad = {"PadBatch": {"pad_to_stride": 32}}
    test = {"sample_transforms": [{"Decode": {}}, resize], "batch_transforms": [pad], **more}
    return {
        "TestReader": test,
        "EvalReader": {"sample_transforms": [{"Resize": {"target_size": [64, 96]}}]},
    }


@pytest.mark.parametrize(
    ("more", "target", "largest"),
    [
        ({}, (800, 1333), (800, 1344)),
        ({"batch_transforms": []}, (800, 1333), (800, 1333)),
        ({"inputs_def": {"image_shape": [3, -1, -1]}}, (800, 1333), (800, 1344)),
        ({"inputs_def": {"image_shape": [None, 3, 300, 400]}}, (300, 400), (320, 416)),
    ],
)
def test_images_that_keep_their_ratio(
    more: dict[str, Any], target: tuple[int, int], largest: tuple[int, int]
) -> None:
    """They have many sizes, none of which is larger, and a program takes them all."""
    cfg = ratio_kept(**more)
    assert has_open_size(cfg)
    assert (target_size_hw(cfg), image_size_hw(cfg)) == (target, largest)
    assert program_size_hw(cfg) == OPEN_HW


@pytest.mark.parametrize("change", [{"keep_ratio": False}, {"Pad": {"size": [1344, 1344]}}])
def test_images_of_one_size(change: dict[str, Any]) -> None:
    cfg = ratio_kept(inputs_def={"image_shape": [3, 64, 64]})
    steps = cfg["TestReader"]["sample_transforms"]
    if "Pad" in change:
        steps.append(change)
    else:
        steps[1]["Resize"].update(change)
    assert not has_open_size(cfg)
    assert image_size_hw(cfg) == target_size_hw(cfg) == program_size_hw(cfg) == (64, 64)


@pytest.mark.parametrize("side", [31, 100, 0, -32])
def test_image_size_that_yolo_cannot_take(side: int) -> None:
    with pytest.raises(ConfigError, match=f"image size {side}x{side} is not valid"):
        image_size_hw({"architecture": "YOLOv3"}, side)


def test_image_size_that_other_detectors_may_take() -> None:
    """Whether they can is known when they run."""
    assert image_size_hw({"architecture": "SSD"}, 300) == (300, 300)
    with pytest.raises(ConfigError, match="image size 0x0 is not valid; expected at least 1x1"):
        image_size_hw({"architecture": "SSD"}, 0)


@pytest.mark.parametrize(
    ("shape", "nearest"),
    [([3, 250, 250], "256x256"), ([3, 1, 335], "32x320"), ([3, 337, 32], "352x32")],
)
def test_nearest_image_size(shape: list[int], nearest: str) -> None:
    reader = {"inputs_def": {"image_shape": shape}}
    settings = {"architecture": "YOLOv3", "TestReader": reader}
    with pytest.raises(ConfigError, match=f"multiples of 32 pixels, such as {nearest}$"):
        image_size_hw(settings)


def test_image_size_of_blazeface() -> None:
    """Its coarsest feature map has a cell of 16 pixels."""
    assert image_size_hw({"architecture": "BlazeFace"}, 16) == (16, 16)
    with pytest.raises(ConfigError, match="72x72 .* multiples of 16 pixels, such as 64x64"):
        image_size_hw({"architecture": "BlazeFace"}, 72)

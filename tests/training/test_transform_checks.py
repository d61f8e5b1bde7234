"""Transforms whose values ppdet finds wrong late or never."""

from __future__ import annotations

from typing import Any

import pytest

from slim_det.core.errors import ConfigError
from slim_det.training.transform_checks import TRANSFORMS, check_transform


def resize(**changes: Any) -> tuple[str, dict[str, Any]]:
    return "Resize", {"target_size": [96, 64], "keep_ratio": False, **changes}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        resize(),
        resize(target_size=96, keep_ratio=True, interp=2),
        ("NormalizeImage", {}),
        ("NormalizeImage", {"mean": [0, 0.5, 1], "std": [0.5, 1, 255], "is_scale": False}),
        ("Permute", {}),
    ],
)
def test_valid(name: str, settings: dict[str, Any]) -> None:
    check_transform("here", name, settings, trains=False)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        (
            *resize(target_size=None),
            "here: Resize.target_size: None is not valid; expected [height",
        ),
        (*resize(target_size=256.5), "Resize.target_size: 256.5 is not valid"),
        (*resize(target_size=[256.5, 256]), "Resize.target_size: [256.5, 256] is not valid"),
        (*resize(target_size={"a": 1}), "Resize.target_size: {'a': 1} is not valid"),
        (*resize(target_size=True), "Resize.target_size: True is not valid"),
        (*resize(target_size=[96]), "Resize.target_size: [96] is not valid"),
        (*resize(target_size=[96, 0]), "Resize.target_size: [96, 0] is not valid"),
        (*resize(keep_ratio="false"), "Resize.keep_ratio: 'false' is not valid; expected true or"),
        ("NormalizeImage", {"mean": [float("nan")]}, "NormalizeImage.mean: [nan] is not valid"),
        (
            "NormalizeImage",
            {"std": [0, 0, 0]},
            "NormalizeImage.std: [0, 0, 0] is not valid; expected",
        ),
        ("NormalizeImage", {"std": [float("inf")]}, "NormalizeImage.std: [inf] is not valid"),
        ("NormalizeImage", {"std": 2}, "NormalizeImage.std: 2 is not valid"),
        ("NormalizeImage", {"norm_type": "max"}, "here: NormalizeImage rejects its settings ("),
        ("Pad", {"size": 3, "size_divisor": 32, "pad_mode": 7}, "here: Pad rejects its settings ("),
    ],
)
def test_mistake(name: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_transform("here", name, settings, trains=True)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["RandomCrop", "RandomFlip", "BatchRandomResize", "Mosaic"])
def test_an_evaluation_sees_the_same_images_each_time(name: str) -> None:
    settings = {"target_size": [96], "keep_ratio": False} if name == "BatchRandomResize" else {}
    check_transform("TrainReader.sample_transforms", name, settings, trains=True)
    with pytest.raises(ConfigError, match=f"here: {name} changes images at random; expected"):
        check_transform("here", name, settings, trains=False)


def test_every_transform_with_random_numbers_is_known_by_name() -> None:
    """A new one of ppdet whose name says that it is random must not pass."""
    random = [name for name in TRANSFORMS if "Random" in name]
    assert len(random) > 10
    for name in random:
        with pytest.raises(ConfigError, match="at random"):
            check_transform("here", name, {}, trains=False)

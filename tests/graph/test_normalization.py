"""The normalisation of images as a part of a program, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.static import InputSpec

from slim_det.core.errors import ConfigError
from slim_det.graph.normalization import Normalization, read_normalization, write_normalization
from slim_det.graph.program import DeployProgram
from tests.graph.nets import traced
from tests.support import assert_same_sums

HALVES: dict[str, Any] = {"mean": [0.5, 0.0, 0.2], "std": [0.5, 1.0, 2.0], "is_scale": True}


def step(**settings: Any) -> dict[str, Any]:
    return {"NormalizeImage": settings}


class Picture(paddle.nn.Layer):
    """A convolution that pads, and a second reader of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = paddle.nn.Conv2D(3, 4, 3, padding=1)

    def forward(self, inputs: dict[str, paddle.Tensor]) -> paddle.Tensor:
        image = inputs["image"]
        return self.conv(image) + image.mean(axis=[1, 2, 3], keepdim=True)


@pytest.fixture
def net(ppdet_registered: None) -> Picture:
    paddle.seed(0)
    return Picture()


@pytest.fixture
def program(net: Picture, tmp_path: Path) -> DeployProgram:
    return traced(net, {"image": InputSpec([None, 3, 5, 6], "float32", "image")}, tmp_path)


@pytest.mark.parametrize(
    ("steps", "black", "white"),
    [
        ([], [0, 0, 0], [255, 255, 255]),
        ([{"Resize": {}}, step(**HALVES)], [-1, 0, -0.1], [1, 1, 0.4]),
        ([step(mean=[100.0], std=[10.0], is_scale=False)], [-10] * 3, [15.5] * 3),
        ([step(is_scale=True, norm_type="none")], [0, 0, 0], [1, 1, 1]),
        ([step(**HALVES), step(**{**HALVES, "is_scale": False})], [-3, 0, -0.15], [1, 1, 0.1]),
        ([{"NormalizeImage": None}], [-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225], None),
    ],
)
def test_what_the_steps_of_a_reader_do(steps: list[Any], black: Any, white: Any) -> None:
    """Values of a pixel that is 0 or 255 in all channels."""
    found = Normalization.of_steps(steps)
    assert found.shift == pytest.approx(black)
    if white is not None:
        assert found.scale * 255 + found.shift == pytest.approx(white)


@pytest.mark.parametrize("settings", [{"mean": [0, 0]}, {"std": 0.0}, {"means": [1]}, {"std": "a"}])
def test_steps_that_are_not_valid(settings: Any) -> None:
    with pytest.raises(ConfigError, match="NormalizeImage: .* is not valid"):
        Normalization.of_steps([step(**settings)])


def test_same_normalization() -> None:
    """In whatever unit mean and deviation are given; a digit more or less is another one."""
    one = Normalization.of_steps([step(**HALVES)])
    bytes_ = {"mean": [127.5, 0.0, 51.0], "std": [127.5, 255.0, 510.0], "is_scale": False}
    assert one.agrees_with(Normalization.of_steps([step(**bytes_)]))
    assert not one.agrees_with(Normalization.of_steps([step(**{**HALVES, "mean": [0.5, 0, 0.21]})]))
    assert not one.agrees_with(Normalization.of_steps([step(**{**HALVES, "std": [0.5, 1, 2.01]})]))
    assert not one.agrees_with(Normalization.of_steps([]))


def test_a_program_that_normalizes(net: Picture, program: DeployProgram, tmp_path: Path) -> None:
    """It gives what the model gives for the normalised image, at the edges too, for any batch."""
    wanted = Normalization.of_steps([step(**HALVES)])
    image = np.random.default_rng(0).uniform(0, 255, (2, 3, 5, 6)).astype("float32")
    with paddle.no_grad():
        expected = net({"image": paddle.to_tensor(wanted(image).astype("float32"))}).numpy()
    assert read_normalization(program) is None
    write_normalization(program, wanted)
    program.save(tmp_path / "saved")
    saved = DeployProgram.load(tmp_path / "saved")
    for one in (program, saved):
        (found,) = one.engine()({"image": image}).values()
        assert_same_sums(found, expected)
        kept = read_normalization(one)
        assert kept is not None and kept.agrees_with(wanted)
    assert saved.feeds == ["image"]


def test_an_image_that_is_only_scaled(program: DeployProgram) -> None:
    """A multiplication alone is not what is looked for, nor an addition of something computed."""
    write_normalization(program, Normalization.of_steps([step(**HALVES)]))
    add = next(op for op in program.ops if op.type == "elementwise_add")
    program.rename_input(add, add.input("Y"), "image")
    assert read_normalization(program) is None

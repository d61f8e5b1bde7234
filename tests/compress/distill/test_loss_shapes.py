"""Tensors that do not fit a loss, or each other, are one line that says how."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest

from slim_det.compress.distill.losses import LOSSES, Options
from slim_det.core.errors import ConfigError
from tests.compress.distill.loss_formulas import OF_ONE_TENSOR, OPTIONS, YOLO_SHAPE, tensor


@pytest.mark.parametrize("name", OF_ONE_TENSOR)
def test_a_tensor_without_elements_is_one_line(name: str) -> None:
    empty = tensor(np.zeros((0, *YOLO_SHAPE[1:])))
    with pytest.raises(ConfigError, match=rf"^distillation loss '{name}': [^\n]*at least one"):
        LOSSES[name].function(empty, empty, OPTIONS)


@pytest.mark.parametrize("name", OF_ONE_TENSOR)
def test_other_shapes_are_one_line_with_both(name: str) -> None:
    student, teacher = tensor(np.zeros((1, 14, 2, 2))), tensor(np.zeros((1, 21, 2, 2)))
    with pytest.raises(ConfigError) as raised:
        LOSSES[name].function(student, teacher, OPTIONS)
    assert str(raised.value) == (
        f"distillation loss '{name}': student [1, 14, 2, 2] and teacher [1, 21, 2, 2] "
        "must have equal shapes"
    )


@pytest.mark.parametrize("name", ["split", "dml"])
@pytest.mark.parametrize("num_classes", [0, 3, 17])
def test_channels_that_do_not_divide_into_anchors_are_one_line(name: str, num_classes: int) -> None:
    raw = tensor(np.zeros((1, 105, 2, 2)))
    with pytest.raises(ConfigError) as raised:
        LOSSES[name].function(raw, raw, Options(num_classes))
    assert str(raised.value) == (
        f"distillation loss '{name}': 105 channels of the raw YOLO output [1, 105, 2, 2] are not "
        f"a multiple of 5 + num_classes, with num_classes {num_classes}"
    )


@pytest.mark.parametrize(
    ("name", "axes"),
    [
        ("split", "N, na*(5+K), H, W"),
        ("soft_label", "N, C, ..."),
        ("cwd", "N, C, H, W"),
        ("dml", "N, na*(5+K), H, W"),
    ],
)
def test_missing_axes_are_one_line(name: str, axes: str) -> None:
    flat = tensor(np.zeros(7))
    with pytest.raises(ConfigError) as raised:
        LOSSES[name].function(flat, flat, OPTIONS)
    assert str(raised.value) == (
        f"distillation loss '{name}': the student's tensor [7] is not [{axes}] "
        "with at least one element"
    )


def test_a_layer_that_gives_several_tensors_is_one_line() -> None:
    one = tensor(np.zeros((1, 6, 1, 1)))
    with pytest.raises(
        ConfigError, match="^distillation loss 'l2': the teacher's layer gives a li"
    ):
        LOSSES["l2"].function(one, [one, one], OPTIONS)


def flow(channels_in: int, channels_out: int, size_out: int = 4) -> list[paddle.Tensor]:
    return [
        tensor(np.ones((1, channels_in, 4, 4))),
        tensor(np.ones((1, channels_out, size_out, size_out))),
    ]


@pytest.mark.parametrize("wrong", [tensor(np.zeros((2, 3, 4, 4))), flow(2, 3)[:1]])
def test_fsp_of_one_tensor_is_one_line(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="^distillation loss 'fsp': expected the input and the"):
        LOSSES["fsp"].function(wrong, flow(2, 3), OPTIONS)


def test_fsp_across_a_stride_is_one_line() -> None:
    with pytest.raises(ConfigError) as raised:
        LOSSES["fsp"].function(flow(2, 3), flow(2, 3, size_out=2), OPTIONS)
    assert str(raised.value) == (
        "distillation loss 'fsp': the teacher's layer turns [1, 2, 4, 4] -> [1, 3, 2, 2]; "
        "expected one that keeps height and width"
    )


def test_fsp_of_other_channels_is_one_line() -> None:
    with pytest.raises(ConfigError) as raised:
        LOSSES["fsp"].function(flow(2, 3), flow(2, 5), OPTIONS)
    assert str(raised.value) == (
        "distillation loss 'fsp': student [1, 2, 4, 4] -> [1, 3, 4, 4] and teacher "
        "[1, 2, 4, 4] -> [1, 5, 4, 4] must have equal channels"
    )

"""Paddle-Lite's form of integers, run by Paddle itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest

from slim_det.compress.quantize.model import signed_inputs
from slim_det.core.errors import ExportError
from slim_det.graph.lite_program import (
    write_lite_int8,
    write_out_hard_swish,
    write_out_leaky_relu,
)
from tests.compress.quantize.nets import make_net, make_quantized, picture
from tests.graph.nets import (
    PIXELS,
    SHAPE,
    folded_with_scales,
    one_convolution,
    operators,
    program_of,
    run_one,
)
from tests.support import assert_same_sums, fill_with

ROUND = "fake_quantize_moving_average_abs_max"
SCALE = "fake_channel_wise_dequantize_max_abs"


def test_nothing_is_quantized(tmp_path: Path) -> None:
    program = program_of(make_net(), SHAPE, tmp_path)
    before = operators(program)
    write_lite_int8(program, {})
    write_out_leaky_relu(program)
    write_out_hard_swish(program)
    assert operators(program) == before


def test_one_by_one_on_paper(tmp_path: Path) -> None:
    """The integers of `test_int8_program` as float32, with the scales behind."""
    net = one_convolution([[1.27, -0.504], [0.031, 2.54]], 12.7)
    program, scales = folded_with_scales(net, PIXELS.shape, tmp_path)
    write_lite_int8(program, scales)
    assert operators(program) == [ROUND, "conv2d", SCALE]
    (name,) = scales
    assert program.value(name).dtype == np.float32
    assert program.value(name)[:, :, 0, 0].tolist() == [[127, -50], [2, 127]]
    assert program.value(f"{name}.scale") == pytest.approx([1.27, 2.54])
    assert program.value("x.scale") == pytest.approx([12.7])
    found = run_one(program, PIXELS, tmp_path, onednn=False)[0, :, 0]
    weight = np.array([[1.27, -0.5], [0.04, 2.54]])
    assert_same_sums(found, weight @ [[3.1, 12.7], [-0.3, 1.0]])


def test_integers_of_fewer_bits(tmp_path: Path) -> None:
    """-63 to 63, declared as 8 bits with a scale that is 127 / 63 as large."""
    net = one_convolution([[1.26, -0.5], [0.04, 2.52]], 12.7)
    program, scales = folded_with_scales(net, PIXELS.shape, tmp_path)
    write_lite_int8(program, scales, weight_bits=7)
    (name,) = scales
    assert program.value(name)[:, :, 0, 0].tolist() == [[63, -25], [1, 63]]
    assert program.value(f"{name}.scale") == pytest.approx(np.array([1.26, 2.52]) * 127 / 63)
    found = run_one(program, PIXELS, tmp_path, onednn=False)[0, :, 0]
    weight = np.array([[1.26, -0.5], [0.04, 2.52]])
    assert_same_sums(found, weight @ [[3.1, 12.7], [-0.3, 1.0]])


def test_net_is_its_simulation(tmp_path: Path) -> None:
    """All integers are signed; three readers share one rounding; outputs keep their names."""
    net = make_quantized()
    program, scales = folded_with_scales(net, SHAPE, tmp_path)
    fetches = list(program.fetches)
    write_lite_int8(program, scales)
    assert operators(program).count(ROUND) == 2 and operators(program).count(SCALE) == 4
    assert program.fetches == fetches
    with signed_inputs(net):
        expected = net(picture()).numpy()
    found = run_one(program, picture().numpy(), tmp_path, onednn=False)
    differences = np.abs(found - expected)
    # A value between two integers may go either way: batch norm is computed in another order.
    assert np.quantile(differences, 0.8) < 1e-4 and differences.max() < 0.05


def test_scales_that_no_engine_takes(tmp_path: Path) -> None:
    program, scales = folded_with_scales(make_quantized(), SHAPE, tmp_path)
    before, name = operators(program), list(scales)[-1]
    with pytest.raises(ExportError, match="has lost its scales"):
        write_lite_int8(program, {**scales, name: replace(scales[name], input_range=0.0)})
    assert operators(program) == before


class Leaky(paddle.nn.Layer):
    """Two slopes, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = paddle.nn.Conv2D(1, 1, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.leaky_relu(self.conv(F.leaky_relu(x, 0.1)), 0.25)


def test_leaky_relu_written_out(tmp_path: Path) -> None:
    net = Leaky()
    program = program_of(net, (1, 1, 1, 4), tmp_path)
    write_out_leaky_relu(program)
    assert "leaky_relu" not in operators(program) and operators(program).count("relu") == 2
    x = np.array([-3.0, -0.0, 0.5, 2.0], np.float32).reshape(1, 1, 1, 4)
    assert_same_sums(run_one(program, x, tmp_path), net(paddle.to_tensor(x)).numpy())


def test_hard_swish_written_out(tmp_path: Path) -> None:
    """Around both edges; a convolution of 1 and 0 returns its input."""
    net = paddle.nn.Sequential(paddle.nn.Conv2D(1, 1, 1), paddle.nn.Hardswish())
    fill_with(net, {"0.weight": 1.0, "0.bias": 0.0})
    program = program_of(net, (1, 1, 1, 6), tmp_path)
    write_out_hard_swish(program)
    assert "hard_swish" not in operators(program)
    x = np.array([-4.0, -3.0, -1.5, 0.0, 1.5, 6.0], np.float32).reshape(1, 1, 1, 6)
    found = run_one(program, x, tmp_path).ravel()
    assert_same_sums(found, [0.0, 0.0, -0.375, 0.0, 1.125, 6.0])

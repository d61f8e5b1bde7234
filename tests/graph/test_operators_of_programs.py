"""Edits of saved programs follow the table: an entry is changed, and they treat its operator so.

Paddle runs no invented operators, so real entries are changed here (see `test_operators.py`).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle.nn import BatchNorm2D, Conv2D, Sequential

from slim_det.compress.quantize.quantizable_layers import find_quantizable_layers
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.core.errors import ExportError
from slim_det.graph.folding import fold_batch_norm
from slim_det.graph.int8_program import float_layers, int8_layers, write_int8
from slim_det.graph.integers import LayerRanges
from slim_det.graph.lite_program import write_lite_int8
from slim_det.graph.operators import OPERATORS
from tests.graph.nets import SHAPE, operators, program_of
from tests.support import trace_plain

RANGES = LayerRanges(1.0, np.ones(1), 8, 8)


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Change an entry of the table until the end of the test."""

    def change_entry(kind: str, **facts: Any) -> None:
        monkeypatch.setitem(OPERATORS, kind, replace(OPERATORS[kind], **facts))

    return change_entry


def test_folding_and_lists_of_convolutions(change: Any, tmp_path: Path) -> None:
    """An operator without an int8 kernel is no convolution for any of them."""
    net = Sequential(Conv2D(2, 4, 1, bias_attr=False), BatchNorm2D(4))
    program = program_of(net, SHAPE, tmp_path)
    unfolded = program.copy()
    assert [op.type for op in program.convolutions] == ["conv2d"]
    fold_batch_norm(program)
    assert operators(program) == ["conv2d", "elementwise_add"]
    assert len(float_layers(program)) == 1
    change("conv2d", int8_kernel=False)
    fold_batch_norm(unfolded)
    assert operators(unfolded) == ["conv2d", "batch_norm"]
    assert unfolded.convolutions == [] and float_layers(program) == []


@pytest.mark.parametrize("write", [write_int8, write_lite_int8])
def test_integers_are_written_for_int8_kernels_only(
    change: Any, tmp_path: Path, write: Any
) -> None:
    net = Sequential(Conv2D(2, 4, 1, bias_attr=False))
    program = program_of(net, SHAPE, tmp_path)
    refused = program.copy()
    (name,) = float_layers(program)
    write(program, {name: RANGES})
    assert len(operators(program)) > 1
    change("conv2d", int8_kernel=False)
    with pytest.raises(ExportError, match=name):
        write(refused, {name: RANGES})


class Joined(paddle.nn.Layer):
    """A convolution's upsampled result, joined with another's, is read by a third."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse, self.fine, self.last = (Conv2D(n, 4, 1, bias_attr=False) for n in (4, 4, 8))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Give what the third makes of both."""
        coarse = F.interpolate(self.coarse(F.max_pool2d(x, 2, 2)), scale_factor=2)
        return self.last(paddle.concat([coarse, self.fine(x)], 1))


@pytest.mark.parametrize("keeps_range", [True, False])
def test_a_part_of_a_concat_is_rounded_where_its_integers_are_made(
    change: Any, tmp_path: Path, keeps_range: bool
) -> None:
    """Before an operator that keeps the range, behind any other."""
    change("nearest_interp_v2", keeps_range=lambda op: keeps_range)
    program = program_of(Joined(), (1, 4, 8, 8), tmp_path)
    write_int8(program, {name: RANGES for name in float_layers(program)})
    assert len(int8_layers(program)) == 3
    order = operators(program)
    at = order.index("nearest_interp_v2")
    assert (order[at - 1] == "dequantize_linear") == keeps_range


class Placed(paddle.nn.Layer):
    """A deformable convolution whose offsets are computed by a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.offset = Conv2D(2, 2, 1), Conv2D(2, 2, 1)
        self.moved = paddle.vision.ops.DeformConv2D(2, 4, 1, bias_attr=False)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Sample where the offsets say."""
        x = self.first(x)
        return self.moved(x, self.offset(x))


def test_sampling_positions_stay_in_float(change: Any) -> None:
    net = Placed()
    trace = trace_plain(net, *SHAPE)
    assert "offset" in find_quantizable_layers(net, trace, QuantSettings()).kept_float
    for kind in ("deformable_conv", "deformable_conv_v1"):
        change(kind, sampling=())
    found = find_quantizable_layers(net, trace, QuantSettings())
    assert "offset" in [layer.name for layer in found.layers]

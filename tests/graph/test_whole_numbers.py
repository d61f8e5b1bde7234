"""Float weights that hold whole numbers stay float beside int8 convolutions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest

from slim_det.compress.quantize.model import quantize_model
from slim_det.compress.quantize.record import QuantLayer, QuantRecord
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.graph.int8_program import float_layers, write_int8
from tests.graph.nets import PIXELS, folded_with_scales, run_one
from tests.support import require_int8


class Averaged(paddle.nn.Layer):
    """A quantized convolution, and a mean of positions, as PP-YOLOE and PicoDet decode a side."""

    def __init__(self, positions: list[float], product: bool) -> None:
        super().__init__()
        self.conv = paddle.nn.Conv2D(2, 2, 1, bias_attr=False)
        weight = np.array([[1.27, -0.504], [0.031, 2.54]], np.float32)
        self.conv.weight.set_value(weight.reshape(2, 2, 1, 1))
        self.product = product
        self.positions = paddle.nn.Conv2D(2, 1, 1, bias_attr=False)
        self.register_buffer("column", paddle.to_tensor([[p] for p in positions]))
        self.positions.weight.set_value(np.array(positions, np.float32).reshape(1, 2, 1, 1))
        record = QuantRecord(QuantSettings(), [QuantLayer("conv")], {})
        quantize_model(self, record, {"conv": 12.7})
        self.eval()

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        y = self.conv(x)
        if self.product:
            return paddle.matmul(y.transpose([0, 2, 3, 1]), self.column)
        return self.positions(y)


@pytest.mark.parametrize("product", [False, True])
@pytest.mark.parametrize("positions", [[0.0, 1.0], [0.0, 0.0], [3.0, 127.0]])
def test_positions_are_no_int8_weight(
    positions: list[float], product: bool, tmp_path: Path
) -> None:
    require_int8()
    net = Averaged(positions, product)
    program, scales = folded_with_scales(net, PIXELS.shape, tmp_path)
    write_int8(program, scales)
    found = run_one(program, PIXELS, tmp_path, int8=True)
    with paddle.no_grad():
        expected = net(paddle.to_tensor(PIXELS)).numpy()
    assert np.abs(found - expected).max() <= 1e-6 * max(np.abs(expected).max(), 1.0)
    kept = [program.value(name) for name in float_layers(program)]
    for weight in kept:
        assert np.abs(weight.ravel() - positions).max() < 1e-5 * max(*positions, 1.0)


def test_fractions_stay_as_they_are(tmp_path: Path) -> None:
    net = Averaged([0.5, 2.0], product=False)
    program, scales = folded_with_scales(net, PIXELS.shape, tmp_path)
    write_int8(program, scales)
    (name,) = float_layers(program)
    assert program.value(name).ravel().tolist() == [0.5, 2.0]

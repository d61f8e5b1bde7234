"""A small net with all that matters to a quantization, and the record that describes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.utils import unique_name

from slim_det.compress.quantize.model import quantize_model
from slim_det.compress.quantize.quantizable_layers import SKIPPED_BY_MODEL
from slim_det.compress.quantize.record import QuantLayer, QuantRecord
from slim_det.compress.quantize.settings import QuantSettings
from tests.support import fill_with

RANGES = {"stem": 2.0, "left": 3.0}


class Net(paddle.nn.Layer):
    """A convolution with batch norm, three that read its output, and one that stays in float."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = paddle.nn.Sequential(
            paddle.nn.Conv2D(2, 4, 3, padding=1, bias_attr=False), paddle.nn.BatchNorm2D(4)
        )
        self.left = paddle.nn.Conv2D(4, 2, 1)
        self.middle = paddle.nn.Conv2D(4, 2, 1)
        self.right = paddle.nn.Conv2D(4, 2, 1)
        self.output = paddle.nn.Conv2D(2, 3, 1)
        self.output.skip_quant = True  # as ppdet's heads mark theirs
        self.branches = [self.left, self.middle, self.right]  # and keep such lists

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        y = F.relu(self.stem(x))
        return self.output(sum(branch(y) for branch in self.branches))


def make_net(seed: int = 0) -> Net:
    """A net in evaluation mode whose batch norm does something."""
    paddle.seed(seed)
    with unique_name.guard():
        net = Net()
    norm = {"weight": [4.0, -1.0, 0.5, 2.0], "bias": 0.25, "_mean": 0.125, "_variance": 3.0}
    fill_with(net, {f"stem.1.{name}": value for name, value in norm.items()})
    net.eval()
    return net


def make_record(**settings: Any) -> QuantRecord:
    """What can be quantized in a `Net`."""
    return QuantRecord(
        settings=QuantSettings(**settings),
        layers=[
            QuantLayer("stem", "stem.1"),
            QuantLayer("left", unsigned=True),
            QuantLayer("middle", shares="left", unsigned=True),
            QuantLayer("right", shares="left", unsigned=True),
        ],
        kept_float={"output": SKIPPED_BY_MODEL},
        origin={"method": "post", "observer": "abs_max", "images": 2},
    )


def make_quantized(**settings: Any) -> Net:
    """A quantized net in evaluation mode."""
    net = make_net()
    quantize_model(net, make_record(**settings), RANGES)
    return net


def picture(seed: int = 0) -> paddle.Tensor:
    """Something for a `Net` to look at."""
    values = np.random.default_rng(seed).normal(size=(1, 2, 5, 5))
    return paddle.to_tensor(values.astype("float32"))


def state_of(layer: paddle.nn.Layer) -> dict[str, np.ndarray]:
    """A copy of everything that is saved."""
    return {name: value.numpy().copy() for name, value in layer.state_dict().items()}

"""Nets of two convolutions that take what a ppdet reader gives, and a configuration for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
from paddle import Tensor, nn
from paddle.utils import unique_name


class SmallNet(nn.Layer):
    """conv -> batch norm -> ReLU -> two convolutions of the same tensor, one without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2D(3, 4, 3, padding=1, bias_attr=False)
        self.norm = nn.BatchNorm2D(4)
        self.left = nn.Conv2D(4, 2, 1)
        self.right = nn.Conv2D(4, 2, 1, bias_attr=False)
        self.inputs_seen: list[np.ndarray] = []

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        if paddle.in_dynamic_mode():
            self.inputs_seen.append(batch["image"].numpy())
        hidden = nn.functional.relu(self.norm(self.first(batch["image"])))
        return {"bbox": self.left(hidden) + self.right(hidden)}


def small_net(seed: int = 0) -> SmallNet:
    """A net in evaluation mode whose batch norm does something."""
    paddle.seed(seed)
    with unique_name.guard():
        net = SmallNet()
    rng = np.random.default_rng(seed)
    net.norm.weight.set_value(rng.uniform(0.5, 1.5, 4).astype("float32"))
    net.norm._mean.set_value(rng.normal(size=4).astype("float32"))
    net.norm._variance.set_value(rng.uniform(0.5, 2.0, 4).astype("float32"))
    net.eval()
    return net


def state(net: nn.Layer) -> dict[str, Any]:
    """A copy of every parameter and statistic."""
    return {name: value.numpy().copy() for name, value in net.state_dict().items()}

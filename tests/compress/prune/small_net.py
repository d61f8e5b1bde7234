"""One small network with a bit of everything, and a plan for it that can be read at a glance."""

from __future__ import annotations

import numpy as np
import paddle
import paddle.nn.functional as F

from slim_det.compress.prune.groups import ModelGroups, find_groups
from slim_det.compress.prune.plan import Plan
from slim_det.compress.tensors import tensor_shapes
from slim_det.graph.trace import Trace
from tests.support import trace_plain


class SmallNet(paddle.nn.Layer):
    """stem 3->4 with batch norm, depthwise, a residual of two, a head 4->2 that is the output."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = paddle.nn.Conv2D(3, 4, 3, padding=1, bias_attr=False)
        self.bn = paddle.nn.BatchNorm2D(4)
        self.depthwise = paddle.nn.Conv2D(4, 4, 3, padding=1, groups=4)
        self.inner = paddle.nn.Conv2D(4, 6, 1)
        self.outer = paddle.nn.Conv2D(6, 4, 1)
        self.head = paddle.nn.Conv2D(4, 2, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = F.relu(self.bn(self.stem(x)))
        x = x + self.outer(F.relu(self.inner(self.depthwise(x))))
        return self.head(x)


def traced(net: paddle.nn.Layer) -> tuple[Trace, ModelGroups]:
    """Trace and groups at 8x8 pixels."""
    trace = trace_plain(net, 1, 3, 8, 8)
    return trace, find_groups(net, trace)


def small_plan(net: SmallNet) -> Plan:
    """Written by hand: `inner` keeps channels 1, 2 and 5, `stem` and what follows 0 and 3."""
    inner, stem = np.array([1, 2, 5]), np.array([0, 3])
    vectors = "bn.weight bn.bias bn._mean bn._variance depthwise.bias outer.bias inner.bias"
    slices = {name: {0: inner if "inner" in name else stem} for name in vectors.split()}
    slices.update(
        {
            "stem.weight": {0: stem},
            "depthwise.weight": {0: stem},
            "inner.weight": {0: inner, 1: stem},
            "outer.weight": {0: stem, 1: inner},
            "head.weight": {1: stem},
        }
    )
    return Plan(
        architecture="SmallNet",
        tensors=tensor_shapes(net),
        image_size_hw=(8, 8),
        settings={"criterion": "l1_norm", "ratios": {"stem": 0.5, "inner": 0.5}},
        cost={"before": {"macs": 2}, "after": {"macs": 1}},
        groups={
            "stem": {"channels": 4, "kept": [0, 3]},
            "inner": {"channels": 6, "kept": [1, 2, 5]},
        },
        slices=slices,
        depthwise={"depthwise.weight": 2},
    )

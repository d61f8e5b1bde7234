"""A small net with a plan written by hand, and checkpoints of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.utils import unique_name

from slim_det.compress.prune.plan import Plan, apply_plan
from slim_det.compress.quantize.model import quantize_model
from slim_det.compress.quantize.record import QuantLayer, QuantRecord
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.compress.steps import steps_of
from slim_det.compress.tensors import tensor_shapes
from slim_det.training import checkpoint

KEPT = np.array([0, 2, 5])


class Net(paddle.nn.Layer):
    """A convolution of 6 channels, batch norm, and a head that reads them."""

    def __init__(self, classes: int = 4, width: int = 6) -> None:
        super().__init__()
        self.backbone = paddle.nn.Sequential(
            paddle.nn.Conv2D(3, width, 3), paddle.nn.BatchNorm2D(width)
        )
        self.head = paddle.nn.Conv2D(width, classes, 1)


def make_net(classes: int = 4, width: int = 6) -> Net:
    with unique_name.guard():
        return Net(classes, width)


def make_plan(net: Net, kept: np.ndarray = KEPT) -> Plan:
    """Cut the first convolution to the kept channels."""
    first = {name: {0: kept} for name in tensor_shapes(net) if name.startswith("backbone")}
    slices = {**first, "head.weight": {1: kept}}
    costs = {"before": {"macs": 2}, "after": {"macs": 1}}
    settings = {"criterion": "l1_norm", "ratios": {"backbone.0": 0.5}, "align": 1, "seed": 0}
    groups = {"backbone.0": {"channels": 6, "kept": kept.tolist()}}
    return Plan("Net", tensor_shapes(net), (32, 32), settings, costs, groups, slices)


def make_pruned(kept: np.ndarray = KEPT) -> Net:
    net = make_net()
    apply_plan(net, make_plan(net, kept))
    return net


def momentum(net: Net) -> paddle.optimizer.Optimizer:
    return paddle.optimizer.Momentum(0.1, 0.9, parameters=net.parameters())


def save(stem: Path, net: Net, last_epoch: int = 3, **more: Any) -> Path:
    checkpoint.save(stem, net.state_dict(), momentum(net), last_epoch, steps_of(net), **more)
    return stem


def values(net: Net) -> dict[str, np.ndarray]:
    return {name: param.numpy() for name, param in net.named_parameters()}


def same(left: Net, right: Net) -> bool:
    pairs = values(left), values(right)
    return all(np.array_equal(pairs[0][name], pairs[1][name]) for name in pairs[0])


def make_record(*more: QuantLayer, **settings: Any) -> QuantRecord:
    layers = [QuantLayer("backbone", "backbone.1"), QuantLayer("head"), *more]
    return QuantRecord(QuantSettings(**settings), layers, {})


def make_quantized(net: Net, **settings: Any) -> Net:
    quantize_model(net, make_record(**settings), {"backbone": 2.0})
    return net


def output(net: Net) -> np.ndarray:
    net.eval()
    return net.head(net.backbone(paddle.linspace(-2, 2, 108).reshape([1, 3, 6, 6]))).numpy()

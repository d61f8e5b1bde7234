"""The counting rule: by hand on single layers, and against the published figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import paddle
import pytest

from slim_det.compress.prune.groups import find_groups
from slim_det.compress.prune.plan import Plan
from slim_det.compress.prune.pruner import Pruner
from slim_det.graph.cost import (
    Cost,
    count_macs,
    detector_cost,
    macs_by_parameter,
    model_cost,
)
from slim_det.graph.trace import Trace, trace_detector
from tests.support import build_detector, trace_plain

GIBI = 2**30
SIZES = (608, 416, 320)
PRESETS = ("sensity", "r578")

MACS = {
    "coco": {
        608: (22160432640, 14565975643, 6727971440),
        416: (10374274560, 6818974747, 3149659760),
        320: (6138624000, 4034896300, 1863704000),
    },
    "voc": {
        608: (21694656000, 14200138243, 6601650320),
        416: (10156224000, 6647710147, 3090523280),
        320: (6009600000, 3933556300, 1828712000),
    },
}
"""MobileNetV1 at each image size: unpruned, sensity, r578."""

PARAMS = {
    "coco": ((24609981, 17548482, 8016992), (24571197, 17513150, 7987880)),
    "voc": ((24286881, 17266782, 7887392), (24248097, None, None)),
}
"""Unpruned, sensity, r578: with the statistics of batch norm, and trainable."""

GFLOPS = {
    "coco": {
        608: ("20.64", "13.57", "6.27"),
        416: ("9.66", "6.35", "2.93"),
        320: ("5.72", "3.76", "1.74"),
    },
    "voc": {
        608: ("20.20", "13.22", "6.15"),
        416: ("9.46", "6.19", "2.88"),
        320: ("5.60", "3.66", "1.70"),
    },
}
"""As printed in PaddleDetection's tables: MACs / 2^30."""


class Wrapped(paddle.nn.Layer):
    """A layer inside a function."""

    def __init__(self, layer: paddle.nn.Layer, function: Callable[..., Any]) -> None:
        super().__init__()
        self.layer = layer
        self.function = function

    def forward(self, x: paddle.Tensor) -> Any:
        return self.function(self.layer, x)


def macs_of(layer: paddle.nn.Layer, *shape: int) -> int:
    return count_macs(trace_plain(layer, *shape))


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (paddle.nn.ReLU(), (1, 3, 8, 8), 0),
        (paddle.nn.BatchNorm2D(3), (1, 3, 8, 8), 0),
        (paddle.nn.Conv2D(1, 1, 1), (1, 1, 1, 1), 1),
        (paddle.nn.Conv2D(3, 4, 3, padding=1), (1, 3, 8, 6), 8 * 6 * 4 * 3 * 9),
        (paddle.nn.Conv2D(3, 4, 3, padding=1, bias_attr=False), (1, 3, 8, 6), 8 * 6 * 4 * 27),
        (paddle.nn.Conv2D(3, 4, 3), (1, 3, 8, 6), 6 * 4 * 4 * 27),
        (paddle.nn.Conv2D(3, 4, 3, stride=2, padding=1), (1, 3, 9, 8), 5 * 4 * 4 * 27),
        (paddle.nn.Conv2D(3, 4, (1, 5), padding=(0, 2)), (1, 3, 8, 6), 8 * 6 * 4 * 15),
        (paddle.nn.Conv2D(3, 4, 3, dilation=2), (1, 3, 8, 8), 4 * 4 * 4 * 27),
        (paddle.nn.Conv2D(6, 6, 3, padding=1, groups=6), (1, 6, 8, 8), 64 * 6 * 9),
        (paddle.nn.Conv2D(6, 12, 3, padding=1, groups=6), (1, 6, 8, 8), 64 * 12 * 9),
        (paddle.nn.Conv2D(6, 4, 3, padding=1, groups=2), (1, 6, 8, 8), 64 * 4 * 3 * 9),
        (paddle.nn.Conv2DTranspose(3, 4, 2, stride=2), (1, 3, 5, 6), 5 * 6 * 3 * 4 * 4),
        (paddle.nn.Conv2DTranspose(4, 4, 3, groups=2), (1, 4, 5, 6), 5 * 6 * 4 * 2 * 9),
        (paddle.nn.Linear(5, 7), (1, 5), 5 * 7),
        (paddle.nn.Linear(5, 7), (3, 5), 3 * 5 * 7),
        (paddle.nn.Linear(5, 7), (1, 4, 6, 5), 4 * 6 * 5 * 7),
    ],
)
def test_single_layers_by_hand(layer: paddle.nn.Layer, shape: tuple[int, ...], macs: int) -> None:
    assert macs_of(layer, *shape) == macs


def test_channels_last_counts_the_same() -> None:
    layer = paddle.nn.Conv2D(3, 4, 3, stride=2, padding=1, data_format="NHWC")
    assert macs_of(layer, 1, 9, 8, 3) == 5 * 4 * 4 * 27


@pytest.mark.parametrize(
    ("function", "shape", "macs"),
    [
        (lambda x: paddle.matmul(x, x, transpose_y=True), (3, 5), 3 * 5 * 3),
        (lambda x: paddle.matmul(x, x, transpose_x=True), (3, 5), 5 * 3 * 5),
        (lambda x: paddle.matmul(x, x, transpose_y=True), (2, 4, 3, 5), 2 * 4 * 3 * 5 * 3),
        (lambda x: paddle.matmul(x[0], x, transpose_y=True), (2, 3, 5), 2 * 3 * 5 * 3),
        (lambda x: paddle.matmul(x, x[0]), (5, 5), 5 * 5),
    ],
)
def test_products_of_activations(
    function: Callable[..., Any], shape: tuple[int, ...], macs: int
) -> None:
    net = Wrapped(paddle.nn.ReLU(), lambda layer, x: function(layer(x)))
    assert macs_of(net, *shape) == macs


def test_a_layer_used_twice_counts_twice_under_one_name() -> None:
    net = Wrapped(paddle.nn.Conv2D(3, 3, 1), lambda layer, x: layer(layer(x)[:, :, 1:]))
    assert macs_by_parameter(trace_plain(net, 1, 3, 4, 4)) == {"layer.weight": 9 * 16 + 9 * 12}


def test_deformable_convolution_counts_like_any_other() -> None:
    class Deformable(paddle.nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            self.offsets = paddle.nn.Conv2D(3, 18, 3, padding=1)
            self.conv = paddle.vision.ops.DeformConv2D(3, 4, 3, padding=1)

        def forward(self, x: paddle.Tensor) -> paddle.Tensor:
            return self.conv(x, self.offsets(x))

    trace = trace_plain(Deformable(), 1, 3, 8, 8)
    expected = {"offsets.weight": 64 * 18 * 27, "conv.weight": 64 * 4 * 27}
    assert macs_by_parameter(trace) == expected


def test_other_shapes_count_as_the_pruned_model() -> None:
    net = paddle.nn.Sequential(paddle.nn.Conv2D(3, 8, 3, padding=1), paddle.nn.Conv2D(8, 4, 1))
    trace = trace_plain(net, 1, 3, 8, 8)
    assert count_macs(trace) == count_macs(trace, {}) == 64 * (8 * 27 + 4 * 8)
    after = {"0.weight": (5, 3, 3, 3), "1.weight": (4, 5, 1, 1), "0.bias": (5,)}
    assert count_macs(trace, after) == 64 * (5 * 27 + 4 * 5)


def test_parameters_and_bytes() -> None:
    net = paddle.nn.Sequential(paddle.nn.Conv2D(3, 4, 1), paddle.nn.BatchNorm2D(4))
    cost = model_cost(net, trace_plain(net, 1, 3, 2, 2))
    assert cost == Cost(macs=48, params_trainable=12 + 4 + 8, params=12 + 4 + 16, size_mb=128e-6)
    net[0].weight.stop_gradient = True
    assert model_cost(net, trace_plain(net, 1, 3, 2, 2)).params_trainable == 4 + 8
    assert list(cost.as_dict()) == [field.name for field in dataclasses.fields(Cost)]


@pytest.fixture(scope="module")
def detectors() -> dict[str, paddle.nn.Layer]:
    name = "yolov3/yolov3_mobilenet_v1_270e_{}"
    return {data: build_detector(name.format(data)) for data in MACS}


@pytest.fixture(scope="module")
def traces(detectors: dict[str, paddle.nn.Layer]) -> dict[tuple[str, int], Trace]:
    return {
        (data, size): trace_detector(model, (size, size))
        for data, model in detectors.items()
        for size in SIZES
    }


def plans_for(model: paddle.nn.Layer, trace: Trace) -> list[Plan]:
    groups = find_groups(model, trace)
    return [Pruner(pruned_ratios=preset).plan(model, trace, groups) for preset in PRESETS]


@pytest.fixture(scope="module")
def plans(
    detectors: dict[str, paddle.nn.Layer], traces: dict[tuple[str, int], Trace]
) -> dict[str, list[Plan]]:
    return {data: plans_for(model, traces[data, 608]) for data, model in detectors.items()}


@pytest.mark.parametrize("data", MACS)
@pytest.mark.parametrize("size", SIZES)
def test_macs_of_mobilenet_v1(
    data: str,
    size: int,
    traces: dict[tuple[str, int], Trace],
    plans: dict[str, list[Plan]],
) -> None:
    trace = traces[data, size]
    after = [count_macs(trace, plan.shapes_after()) for plan in plans[data]]
    macs = (count_macs(trace), *after)
    assert macs == MACS[data][size]
    assert tuple(f"{count / GIBI:.2f}" for count in macs) == GFLOPS[data][size]


@pytest.mark.parametrize("data", PARAMS)
def test_parameters_of_mobilenet_v1(data: str, plans: dict[str, list[Plan]]) -> None:
    costs = [plans[data][0].cost["before"], *(plan.cost["after"] for plan in plans[data])]
    in_all, trainable = PARAMS[data]
    assert tuple(cost["params"] for cost in costs) == in_all
    for cost, expected in zip(costs, trainable):
        assert expected in (None, cost["params_trainable"])
    assert [cost["size_mb"] for cost in costs] == pytest.approx([n * 4e-6 for n in in_all])
    assert [cost["macs"] for cost in costs] == list(MACS[data][608])


def test_the_cost_of_a_detector(detectors: dict[str, paddle.nn.Layer]) -> None:
    cost = detector_cost(detectors["voc"], (320, 416))
    assert cost.macs == MACS["voc"][320][0] * 416 // 320
    assert cost.params == PARAMS["voc"][0][0]


def test_r50vd_with_and_without_deformable_convolutions() -> None:
    """Published tables leave out the deformable convolutions; the counting rule does not."""
    model = build_detector("yolov3/yolov3_r50vd_dcn_270e_coco")
    trace = trace_detector(model, (608, 608))
    deformable = {
        trace.parameters[op.input("Filter")] for op in trace.ops if "deformable" in op.type
    }
    assert len(deformable) == 3
    plans = plans_for(model, trace)
    tables = [macs_by_parameter(trace, p.shapes_after()) for p in plans]
    tables.insert(0, macs_by_parameter(trace))
    everything = [sum(table.values()) for table in tables]
    without = [sum(n for name, n in t.items() if name not in deformable) for t in tables]
    assert [f"{macs / 1e9:.3f}" for macs in everything] == ["50.557", "42.850", "34.747"]
    assert [f"{macs / GIBI:.2f}" for macs in without] == ["44.71", "37.53", "29.98"]
    params = [plans[0].cost["before"]["params"], *(p.cost["after"]["params"] for p in plans)]
    assert [f"{count / 1e6:.2f}" for count in params] == ["46.02", "38.87", "29.05"]

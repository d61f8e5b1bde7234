"""The convolutions of a traced model: by hand on a small net, and against a pruned model."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F

from slim_det.compress.prune.plan import apply_plan
from slim_det.graph.cost import count_macs
from slim_det.planning.profile.shapes import ConvShape, conv_shapes
from tests.compress.prune.small_net import SmallNet, small_plan, traced
from tests.support import trace_plain


class Varied(paddle.nn.Layer):
    """Stride, dilation, groups, a weight used twice, and every place of an activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = paddle.nn.Conv2D(3, 8, 5, stride=2, padding=2, bias_attr=False)
        self.norm = paddle.nn.BatchNorm2D(8)
        self.wide = paddle.nn.Conv2D(8, 8, 3, padding=2, dilation=2, groups=2, bias_attr=False)
        self.oblong = paddle.nn.Conv2D(8, 8, (1, 3), padding=(0, 1))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = F.leaky_relu(self.norm(self.first(x)))
        y = self.wide(x)
        return F.relu(y) + y + F.hardswish(self.wide(x)) + self.oblong(x)


def test_a_model_without_convolutions_has_none() -> None:
    assert conv_shapes(trace_plain(paddle.nn.ReLU(), 1, 3, 8, 8)) == []


def test_small_net_by_hand() -> None:
    trace, _ = traced(SmallNet())

    assert conv_shapes(trace) == [
        ("stem.weight", ConvShape(3, 4, 8, 8, 3, 1, 1, act="relu")),
        ("depthwise.weight", ConvShape(4, 4, 8, 8, 3, 1, 1, groups=4)),
        ("inner.weight", ConvShape(4, 6, 8, 8, 1)),  # a bias keeps the activation apart
        ("outer.weight", ConvShape(6, 4, 8, 8, 1)),
        ("head.weight", ConvShape(4, 2, 8, 8, 1)),
    ]


def test_every_attribute_is_read_and_what_is_not_square_is_left_out() -> None:
    wide = ConvShape(8, 8, 4, 6, 3, 1, 2, dilation=2, groups=2)

    shapes = conv_shapes(trace_plain(Varied(), 1, 3, 8, 12))

    assert shapes == [
        ("first.weight", ConvShape(3, 8, 8, 12, 5, 2, 2, act="leaky_relu")),
        ("wide.weight", wide),  # its output is read twice: no activation runs inside it
        ("wide.weight", ConvShape(**{**wide.as_dict(), "act": "hard_swish"})),
    ]


def test_shapes_after_a_cut_are_those_of_the_cut_model() -> None:
    net = SmallNet()
    trace, _ = traced(net)
    plan = small_plan(net)
    predicted = conv_shapes(trace, plan.shapes_after())
    apply_plan(net, plan)

    assert predicted == conv_shapes(traced(net)[0])
    assert predicted[1] == ("depthwise.weight", ConvShape(2, 2, 8, 8, 3, 1, 1, groups=2))


def test_macs_are_those_of_the_counting_rule() -> None:
    trace = traced(SmallNet())[0]
    assert sum(shape.macs for _, shape in conv_shapes(trace)) == count_macs(trace)
    # 8x12 pixels, kernel 5, stride 2, padding 2: 4x6 outputs
    assert ConvShape(3, 8, 8, 12, 5, 2, 2).macs == 4 * 6 * 8 * 3 * 25


def test_a_shape_reads_as_a_phrase() -> None:
    shape = ConvShape(32, 64, 80, 80, 3, 2, 1, act="relu")
    assert str(shape) == "3x3 conv 32->64 of 80x80, stride 2, relu"
    assert str(ConvShape(8, 8, 4, 4, 3, 1, 1, groups=8)) == "3x3 depthwise conv 8->8 of 4x4"

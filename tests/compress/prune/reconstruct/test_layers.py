"""Which layers a pruning changes, in which order they can be repaired, and which cannot be."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle.nn import BatchNorm2D, Conv2D, Conv2DTranspose, Linear

from slim_det.compress.prune.reconstruct.layers import (
    Changed,
    changed_by,
    data_names,
    linear_layers,
)
from slim_det.graph.linear_rules import Convolution, Product, TransposedConvolution
from slim_det.graph.operators import weight_of
from tests.compress.prune.reconstruct.nets import Prepared
from tests.compress.prune.small_net import SmallNet

pytestmark = pytest.mark.usefixtures("ppdet_registered")


def net(parts: dict[str, paddle.nn.Layer], forward: Any) -> Prepared:
    """Layers by name, and a function of them and the image."""

    class Net(paddle.nn.Layer):
        def __init__(self) -> None:
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

        def forward(self, x: paddle.Tensor) -> paddle.Tensor:
            return forward(self, x)

    return Prepared(Net())


def conv(inputs: int, outputs: int, **settings: Any) -> Conv2D:
    return Conv2D(inputs, outputs, 1, bias_attr=False, **settings)


def after_cut(prepared: Prepared, *groups: str, places: tuple[int, ...] = (0,)) -> Changed:
    """Remove these units of some groups."""
    found = [prepared.groups.groups[name].units[list(places)] for name in groups]
    removed = np.concatenate(found) if found else np.zeros(0, np.int64)
    return changed_by(prepared.program(), prepared.parameters, prepared.groups, removed)


def names(changed: Changed) -> list[str]:
    return [layer.weight.removesuffix(".weight") for layer in changed.layers]


def test_nothing_is_removed() -> None:
    changed = after_cut(Prepared(SmallNet()))
    assert changed == Changed((), {}, ())


def test_the_small_net() -> None:
    """Readers of the cut tensor, then what follows; depthwise and batch norm are only sliced."""
    prepared = Prepared(SmallNet())
    assert names(after_cut(prepared, "stem")) == ["inner", "outer", "head"]
    assert names(after_cut(prepared, "inner")) == ["outer", "head"]
    both = after_cut(prepared, "inner", "stem")
    assert names(both) == ["inner", "outer", "head"]
    assert both.left == {} and both.batch_norms == ()


def test_all_layers_of_the_small_net() -> None:
    prepared = Prepared(SmallNet())
    program = prepared.program()
    layers = linear_layers(program, prepared.parameters)
    assert list(layers) == [
        f"{name}.weight" for name in ("stem", "depthwise", "inner", "outer", "head")
    ]
    for name, layer in layers.items():
        (use,) = layer.uses
        assert prepared.parameters[weight_of(program.ops[use])] == name
        assert layer.inputs(program) == data_names(program.ops[use])


def test_a_depthwise_layer_behind_a_reader() -> None:
    """Its input is changed, though it reads no cut channel."""
    prepared = net(
        {"a": conv(3, 4), "b": conv(4, 6), "deep": conv(6, 6, groups=6), "c": conv(6, 2)},
        lambda s, x: s.c(s.deep(s.b(s.a(x)))),
    )
    assert names(after_cut(prepared, "a")) == ["b", "deep", "c"]


def test_what_lies_beside_stays() -> None:
    prepared = net(
        {"a": conv(3, 4), "b": conv(4, 2), "other": conv(3, 4), "end": conv(4, 2)},
        lambda s, x: (s.b(s.a(x)), s.end(s.other(x))),
    )
    assert names(after_cut(prepared, "a")) == ["b"]


def test_batch_norms_behind() -> None:
    """That of a reader sees another distribution; that of the cut layer does not."""
    prepared = net(
        {
            "a": conv(3, 4), "a_bn": BatchNorm2D(4), "b": conv(4, 5), "b_bn": BatchNorm2D(5),
            "c": conv(5, 2), "end": BatchNorm2D(2),
        },
        lambda s, x: s.end(s.c(F.relu(s.b_bn(s.b(F.relu(s.a_bn(s.a(x)))))))),
    )  # fmt: skip
    changed = after_cut(prepared, "a")
    ops = prepared.program().ops
    scales = [prepared.parameters[ops[i].input("Scale")] for i in changed.batch_norms]
    assert scales == ["b_bn.weight", "end.weight"]


def test_a_weight_that_is_used_twice() -> None:
    """One layer with two uses."""
    prepared = net(
        {"a": conv(3, 4), "other": conv(3, 4), "twice": conv(4, 2)},
        lambda s, x: s.twice(s.a(x)) + s.twice(F.relu(s.other(x))),
    )
    changed = after_cut(prepared, "a")
    assert names(changed) == ["twice"] and changed.left == {}
    (twice,) = changed.layers
    program = prepared.program()
    assert [program.ops[use].type for use in twice.uses] == ["conv2d", "conv2d"]
    assert len(set(twice.inputs(program))) == 2


def test_the_order_is_not_that_of_first_uses() -> None:
    """`twice` comes first in the program, but its second input depends on `b`."""
    prepared = net(
        {"a": conv(3, 4), "twice": conv(4, 5), "b": conv(4, 4), "end": conv(5, 2)},
        lambda s, x: s.end(s.twice(s.a(x)) + s.twice(s.b(s.a(x)))),
    )
    assert names(after_cut(prepared, "a")) == ["b", "twice", "end"]


def test_a_circle() -> None:
    """A layer that reads its own output, as in a recurrent net, is left; others are not."""
    prepared = net(
        {"a": conv(3, 4), "again": conv(4, 4), "end": conv(4, 2)},
        lambda s, x: s.end(s.again(F.relu(s.again(s.a(x))))),
    )
    changed = after_cut(prepared, "a")
    assert names(changed) == ["end"]
    assert changed.left == {"again.weight": "its input depends on itself"}


def test_two_layers_that_wait_for_each_other() -> None:
    """Each is used before and after the other; without one of them, the other has an order."""
    prepared = net(
        {"a": conv(3, 4), "b": conv(4, 4), "c": conv(4, 4), "end": conv(4, 2)},
        lambda s, x: s.end(s.b(s.c(s.a(x))) + s.c(F.relu(s.b(F.relu(s.a(x)))))),
    )
    changed = after_cut(prepared, "a")
    (left,) = changed.left
    assert names(changed) == [{"b.weight": "c", "c.weight": "b"}[left], "end"]


def test_grouped_and_transposed_layers() -> None:
    prepared = net(
        {
            "a": conv(3, 4), "grouped": conv(4, 6, groups=2),
            "up": Conv2DTranspose(6, 4, 2, 2, groups=2), "end": Linear(4, 2),
        },
        lambda s, x: s.end(s.up(s.grouped(s.a(x))).transpose([0, 2, 3, 1])),
    )  # fmt: skip
    changed = after_cut(prepared, "a")
    assert names(changed) == ["grouped", "up", "end"]
    rules = [type(layer.rule) for layer in changed.layers]
    assert rules == [Convolution, TransposedConvolution, Product]


class Matrix(paddle.nn.Layer):
    """A free parameter."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = self.create_parameter(list(shape))


def rows(x: paddle.Tensor) -> paddle.Tensor:
    return x.flatten(2)  # [1, C, 64]


@pytest.mark.parametrize(
    ("shape", "multiply"),
    [
        ((4, 2), lambda x, w: paddle.matmul(rows(x), w, transpose_x=True)),
        ((1, 64, 2), lambda x, w: paddle.matmul(rows(x), w)),
        ((64, 64), lambda x, w: paddle.matmul(paddle.matmul(rows(x), w), w, transpose_y=True)),
        ((64, 64), lambda x, w: paddle.matmul(rows(x), w) + w[:4]),
    ],
    ids=["turned input", "three axes", "both ways", "other reader"],
)
def test_products_that_are_no_layers(shape: tuple[int, ...], multiply: Any) -> None:
    """The input is turned, the weight has more axes, or its uses cannot be solved for together."""
    prepared = net(
        {"a": conv(3, 4), "b": conv(4, 4), "free": Matrix(*shape)},
        lambda s, x: multiply(s.b(s.a(x)), s.free.weight),
    )
    changed = after_cut(prepared, "a")
    assert names(changed) == ["b"]
    assert changed.left == {
        "free.weight": "its use by operator 'matmul_v2' is not written as a matrix product"
    }
    assert "free.weight" not in linear_layers(prepared.program(), prepared.parameters)

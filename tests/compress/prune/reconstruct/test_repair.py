"""One layer: where its intercept goes, what it is fitted to, and when it is left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle.nn import BatchNorm2D, Conv2D, Conv2DTranspose, Linear

from slim_det.compress.prune.plan import Plan, apply_plan
from slim_det.compress.prune.reconstruct.intercept import intercept_place
from slim_det.compress.prune.reconstruct.layers import linear_layers
from tests.compress.prune.reconstruct.nets import (
    Prepared,
    changed,
    drawn_images,
    outputs,
    values,
)

pytestmark = pytest.mark.usefixtures("ppdet_registered")

ALL = 10**6
ROUNDING = 1e-6
"""Of the squared spread: weights and activations are float32."""


class Net(paddle.nn.Layer):
    """`cut` makes the channels that are removed, `read` reads them; the rest is given."""

    def __init__(self, after: Callable[..., Any], read: paddle.nn.Layer, **parts: Any) -> None:
        super().__init__()
        self.cut = Conv2D(3, 4, 1)
        self.read = read
        self.after = after
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: paddle.Tensor) -> Any:
        return self.after(self, F.relu(self.cut(x)))


class Vector(paddle.nn.Layer):
    """A free parameter."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.value = self.create_parameter(
            list(shape), default_initializer=paddle.nn.initializer.Normal()
        )


def conv(outputs: int = 5, **settings: Any) -> Conv2D:
    return Conv2D(4, outputs, 3, padding=1, **{"bias_attr": False, **settings})


def lines(inputs: int = 4) -> Linear:
    return Linear(inputs, 5)


def pixels(s: Any, x: paddle.Tensor) -> paddle.Tensor:
    return s.read(x.transpose([0, 2, 3, 1]))


NETS: dict[str, tuple[Callable[[], Net], str]] = {
    "nothing": (lambda: Net(lambda s, x: s.read(x), conv()), ""),
    "bias": (lambda: Net(lambda s, x: s.read(x), conv(bias_attr=None)), "read.bias"),
    "batch norm": (
        lambda: Net(lambda s, x: s.bn(s.read(x)), conv(), bn=BatchNorm2D(5)),
        "bn._mean",
    ),
    "both": (
        lambda: Net(lambda s, x: s.bn(s.read(x)), conv(bias_attr=None), bn=BatchNorm2D(5)),
        "read.bias",
    ),
    "batch norm beside": (
        lambda: Net(lambda s, x: s.bn(s.read(x)) + s.read(x), conv(), bn=BatchNorm2D(5)),
        "",
    ),
    "batch norm behind relu": (
        lambda: Net(lambda s, x: s.bn(F.relu(s.read(x))), conv(), bn=BatchNorm2D(5)),
        "",
    ),
    "batch norm of two": (
        lambda: Net(
            lambda s, x: s.bn(s.read(x)) + s.bn(s.more(x)), conv(), bn=BatchNorm2D(5), more=conv()
        ),
        "",
    ),
    "used twice, bias": (
        lambda: Net(lambda s, x: s.read(x) + s.read(F.tanh(x)), conv(bias_attr=None)),
        "read.bias",
    ),
    "transposed": (
        lambda: Net(lambda s, x: s.read(x), Conv2DTranspose(4, 5, 2, 2)),
        "read.bias",
    ),
    "linear": (lambda: Net(pixels, lines()), "read.bias"),
    "vector of channels": (
        lambda: Net(lambda s, x: s.read(x) + s.free.value, conv(), free=Vector(1, 5, 1, 1)),
        "free.value",
    ),
    "one number": (
        lambda: Net(lambda s, x: s.read(x) + s.free.value, conv(), free=Vector(1)),
        "",
    ),
    "one number for each row": (
        lambda: Net(lambda s, x: s.read(x) + s.free.value, conv(8), free=Vector(8, 1)),
        "",
    ),
    "one number for each column": (
        lambda: Net(lambda s, x: s.read(x) + s.free.value, conv(8), free=Vector(8)),
        "",
    ),
    "an image": (
        lambda: Net(lambda s, x: s.read(x) + s.free.value, conv(), free=Vector(5, 8, 8)),
        "",
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_a_layer_is_repaired(name: str, tmp_path: Path) -> None:
    """The intercept goes where there is room for it, and no error grows.

    The errors are those of this layer alone, compared with its outputs as numpy finds them.
    """
    make, place = NETS[name]
    paddle.seed(0)
    net = make()
    prepared, images = Prepared(net), drawn_images(4)
    program = prepared.program()
    found = intercept_place(program, linear_layers(program, prepared.parameters)["read.weight"])
    assert (prepared.parameters[found.variable] if found else "") == place
    shapes = {key: value.shape for key, value in values(net).items()}
    wanted = outputs(net, images)
    plan, repair = prepared.cut_and_repaired({"cut": 0.5}, images, tmp_path, positions=ALL)
    repaired, state = outputs(net, images), values(net)
    (error,) = [one for one in repair.layers if one.weight == "read.weight"]
    assert error.after < error.before and not error.note
    for key, shape in (shapes | plan.shapes_after()).items():
        assert state[key].shape == shape, key
    cut = cut_only(make, plan)
    old = values(cut)
    own = {f"bn.{vector}" for vector in ("weight", "bias", "_mean", "_variance")}
    assert set(changed(old, state)) - own == {"read.weight", place} - own - {""} | (
        {"more.weight"} if "more.weight" in state else set()
    )
    if name != "batch norm of two":
        before, after = (_error(part, wanted) for part in (outputs(cut, images), repaired))
        assert after < before


def cut_only(make: Callable[[], Net], plan: Plan, seed: int = 0) -> Net:
    """The same network, cut but not repaired."""
    paddle.seed(seed)
    net = make()
    apply_plan(net, plan)
    return net


def _error(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    return float(sum(np.square(a - b).sum() for a, b in zip(found, wanted)))


def test_errors_are_those_of_the_outputs(tmp_path: Path) -> None:
    """Before and after, relative to the spread of each channel around its mean; bias included.

    1e-4: the network computes in float32.
    """
    make, _ = NETS["bias"]
    paddle.seed(0)
    prepared, images = Prepared(make()), drawn_images(4)
    wanted = np.stack(outputs(prepared.net, images)).reshape(4, 5, -1)
    spread = np.square(wanted - wanted.mean((0, 2), keepdims=True)).sum()
    plan, repair = prepared.cut_and_repaired({"cut": 0.5}, images, tmp_path, positions=ALL)
    cut = cut_only(make, plan)
    (error,) = repair.layers
    for net, given in ((cut, error.before), (prepared.net, error.after)):
        found = np.stack(outputs(net, images)).reshape(4, 5, -1)
        assert given == pytest.approx(np.square(found - wanted).sum() / spread, rel=1e-4)


def test_a_channel_that_another_replaces(tmp_path: Path) -> None:
    """Two channels that are the same: one goes, the other takes its weights; nothing is lost."""
    paddle.seed(0)
    net = Net(lambda s, x: s.read(x), conv())
    for parameter in (net.cut.weight, net.cut.bias):
        value = parameter.numpy()
        value[[1, 3]] = value[[0, 2]]
        parameter.set_value(value)
    weight = net.read.weight.numpy()
    prepared, images = Prepared(net), drawn_images(4)
    wanted = outputs(net, images)
    plan, repair = prepared.cut_and_repaired(
        {"cut": 0.5}, images, tmp_path, choose=True, criterion="elimination", ridge=1e-8,
        positions=ALL,
    )  # fmt: skip
    kept = plan.groups["cut"]["kept"]
    assert {unit // 2 for unit in kept} == {0, 1}
    (error,) = repair.layers
    assert error.before > 0.01 and error.after < ROUNDING
    for a, b in zip(outputs(net, images), wanted):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max())
    sums = np.stack([weight[:, :2].sum(1), weight[:, 2:].sum(1)], axis=1)
    order = [unit // 2 for unit in kept]
    np.testing.assert_allclose(net.read.weight.numpy(), sums[:, order], atol=1e-4)


def test_what_was_cut_from_its_own_outputs(tmp_path: Path) -> None:
    """A layer that loses outputs too is fitted to those that are kept."""
    paddle.seed(0)
    net = Net(lambda s, x: s.end(F.relu(s.read(x))), conv(6), end=Conv2D(6, 2, 1))
    prepared, images = Prepared(net), drawn_images(5)
    before = net.read.weight.numpy()
    plan, repair = prepared.cut_and_repaired({"cut": 0.25, "read": 0.5}, images, tmp_path)
    assert [error.weight for error in repair.layers] == ["read.weight", "end.weight"]
    assert net.read.weight.shape == [3, 3, 3, 3]
    kept = plan.groups["read"]["kept"], plan.groups["cut"]["kept"]
    start = before[np.ix_(*kept)]
    moved = np.abs(net.read.weight.numpy() - start)
    assert 0.0 < moved.mean() < np.abs(start).mean()
    assert all(error.after < error.before for error in repair.layers)


@pytest.mark.parametrize(("images", "left"), [(4, False), (5, True), (10, True)])
def test_the_fifth_image_is_held_out(images: int, left: bool, tmp_path: Path) -> None:
    """What one position of each image teaches is no use for a fifth that is 40 times as bright.

    Four images have none to be judged by. A layer that is left keeps the weights of the cut.
    """

    def make() -> Net:
        return Net(lambda s, x: s.read(x), conv())

    paddle.seed(1)
    net = make()
    given = drawn_images(images, seed=1)
    if images >= 5:
        (given[4],) = drawn_images(1, seed=99, scale=40.0)
    plan, repair = Prepared(net).cut_and_repaired({"cut": 0.5}, given, tmp_path, positions=images)
    (error,) = repair.layers
    cut = cut_only(make, plan, seed=1)
    if left:
        assert error.note == "it is no better on held-out images"
        assert error.after == error.before
        assert not list(changed(values(cut), values(net)))
    else:
        assert not error.note and error.after < 0.01 * error.before
        assert list(changed(values(cut), values(net))) == ["read.weight"]


def test_channels_that_nobody_reads(tmp_path: Path) -> None:
    """Weights of zero: nothing is lost, and the layer stays as it is, to rounding."""

    def make() -> Net:
        net = Net(lambda s, x: s.read(x), conv())
        weight = net.read.weight.numpy()
        weight[:, 1::2] = 0.0
        net.read.weight.set_value(weight)
        return net

    paddle.seed(0)
    net = make()
    prepared, images = Prepared(net), drawn_images(3)
    plan, repair = prepared.cut_and_repaired(
        {"cut": 0.5}, images, tmp_path, choose=True, criterion="elimination"
    )
    assert plan.groups["cut"]["kept"] == [0, 2]
    (error,) = repair.layers
    assert error.after <= error.before < ROUNDING
    old = cut_only(make, plan).read.weight.numpy()
    np.testing.assert_allclose(net.read.weight.numpy(), old, atol=1e-4)


def test_one_of_two_uses_in_front_of_a_relu(tmp_path: Path) -> None:
    """The weight is solved for as if there were none: the other use needs all outputs.

    What is left of the error is that of a single use without ReLU.
    """

    def make(after: Callable[..., Any]) -> Net:
        paddle.seed(0)
        return Net(after, conv(bias_attr=None))

    found = []
    for name, after in (
        ("both", lambda s, x: (F.relu(s.read(x)), s.read(x))),
        ("one", lambda s, x: s.read(x)),
    ):
        (tmp_path / name).mkdir()
        prepared = Prepared(make(after))
        prepared.cut_and_repaired({"cut": 0.5}, drawn_images(6), tmp_path / name, positions=ALL)
        found.append(values(prepared.net)["read.weight"])
    np.testing.assert_allclose(*found, rtol=1e-4, atol=1e-6)

"""Whole networks on calibration images: chosen, cut, repaired."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle.nn import BatchNorm2D, Conv2D

from slim_det.compress.prune.plan import Plan, apply_plan
from slim_det.compress.prune.reconstruct import reconstruction as reconstruction_module
from slim_det.compress.prune.reconstruct.reconstruction import Repair
from slim_det.core.errors import DataError, LayerError, PlanError
from tests.compress.prune.reconstruct.nets import (
    Prepared,
    drawn_images,
    outputs,
    squared_error,
    values,
)

pytestmark = pytest.mark.usefixtures("ppdet_registered")

ALL = 10**6
RATIOS = {"first": 0.5, "second": 0.4}


class Net(paddle.nn.Layer):
    """Three convolutions with batch norm, and a head; everything but `first` can be repaired."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.first_bn = Conv2D(3, 8, 3, padding=1, bias_attr=False), BatchNorm2D(8)
        self.second, self.second_bn = Conv2D(8, 10, 3, 2, 1, bias_attr=False), BatchNorm2D(10)
        self.third = Conv2D(10, 6, 3, padding=1, groups=2)
        self.head = Conv2D(6, 2, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        x = F.relu(self.first_bn(self.first(x)))
        x = F.leaky_relu(self.second_bn(self.second(x)), 0.1)
        return self.head(F.relu(self.third(x)))


class Chain(paddle.nn.Layer):
    """Convolutions of one pixel without activation: every channel is linear in three numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Conv2D(3, 8, 1), Conv2D(8, 8, 1)
        self.bn, self.head = BatchNorm2D(8), Conv2D(8, 4, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.head(self.bn(self.second(self.first(x))))


def made(kind: Callable[[], paddle.nn.Layer] = Net, seed: int = 0) -> paddle.nn.Layer:
    """A network with running statistics that fit its images."""
    paddle.seed(seed)
    net = kind()
    net.train()
    for layer in net.sublayers():
        if isinstance(layer, BatchNorm2D):
            layer._momentum = 0.0
    with paddle.no_grad():
        net(paddle.to_tensor(np.concatenate(drawn_images(8))))
    net.eval()
    return net


def cut_only(kind: Callable[[], paddle.nn.Layer], plan: Plan) -> paddle.nn.Layer:
    """The same network, cut in the same way and not repaired."""
    net = made(kind)
    apply_plan(net, plan)
    return net


def repaired(
    folder: Path, images: list[np.ndarray], kind: Any = Net, ratios: Any = None, **settings: Any
) -> tuple[paddle.nn.Layer, Plan, Repair]:
    folder.mkdir(exist_ok=True)
    net = made(kind)
    plan, repair = Prepared(net).cut_and_repaired(ratios or RATIOS, images, folder, **settings)
    return net, plan, repair


def assert_same(left: paddle.nn.Layer, right: paddle.nn.Layer) -> None:
    """Bit for bit."""
    others = values(right)
    for name, value in values(left).items():
        assert np.array_equal(value, others[name]), name


def test_no_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no image to learn from"):
        Prepared(made()).reconstruction([], tmp_path)


def test_linear_channels_are_replaced(tmp_path: Path) -> None:
    """Four of eight channels go, and three hold everything: the output is the same.

    To 1e-6 of the largest output, for the rounding of float32 (measured: 2e-7); a ridge of 1e-8 is
    far below that. Without repair nearly half is wrong.
    """
    images = drawn_images(4)
    wanted = outputs(made(Chain), images)
    size = squared_error(wanted, [np.zeros_like(one) for one in wanted])
    for choose in (True, False):
        net, plan, repair = repaired(
            tmp_path / str(choose), images, Chain, {"first": 0.5, "second": 0.5},
            ridge=1e-8, positions=ALL, choose=choose,
            criterion="elimination" if choose else "random",
        )  # fmt: skip
        assert all(error.after < 1e-12 for error in repair.layers), repair
        largest = max(np.abs(one).max() for one in wanted)
        for found, expected in zip(outputs(net, images), wanted):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * largest)
        assert squared_error(outputs(cut_only(Chain, plan), images), wanted) > 0.01 * size


@pytest.mark.parametrize("choose", [False, True])
def test_no_layer_gets_worse(choose: bool, tmp_path: Path) -> None:
    """And the output is nearer to what it was (measured: 0.62 and 0.67 of the error).

    The network is not trained, so few of its channels can replace others.
    """
    images = drawn_images(10)
    wanted = outputs(made(), images)
    net, plan, repair = repaired(
        tmp_path / "run", images, choose=choose, positions=ALL,
        criterion="elimination" if choose else "l1_norm",
    )  # fmt: skip
    names = [error.weight for error in repair.layers]
    assert names == ["second.weight", "third.weight", "head.weight"]
    assert repair.left == {} and repair.images == 10
    assert all(0.0 <= error.after <= error.before for error in repair.layers)
    after = squared_error(outputs(net, images), wanted)
    assert after < 0.8 * squared_error(outputs(cut_only(Net, plan), images), wanted)


def test_images_that_it_has_not_seen(tmp_path: Path) -> None:
    """Of the same kind: also nearer to what the network computed (measured: 0.78 of the error)."""
    net, plan, _ = repaired(tmp_path / "run", drawn_images(20))
    others = drawn_images(10, seed=1)
    wanted = outputs(made(), others)
    before = squared_error(outputs(cut_only(Net, plan), others), wanted)
    assert squared_error(outputs(net, others), wanted) < 0.9 * before


def test_elimination_is_better_than_norms(tmp_path: Path) -> None:
    """It takes what the others can replace: less is lost after the repair."""
    images = drawn_images(10)
    wanted = outputs(made(), images)
    lost = []
    for criterion in ("elimination", "l1_norm"):
        net, _, _ = repaired(
            tmp_path / criterion, images, positions=ALL, choose=criterion == "elimination",
            criterion=criterion,
        )  # fmt: skip
        lost.append(squared_error(outputs(net, images), wanted))
    assert lost[0] < lost[1]


def test_training_is_the_measured_function(tmp_path: Path) -> None:
    """On the images as one batch, training mode computes what evaluation mode does.

    The uncut network does, by its statistics; after the cut the modes are far apart (measured: 0.8
    of the largest output), and after the repair the same again (measured: 2e-7).
    """
    images = drawn_images(8)
    net, plan, _ = repaired(tmp_path / "run", images, positions=ALL)
    assert apart(made(), images) < 1e-5
    assert apart(cut_only(Net, plan), images) > 0.1
    assert apart(net, images) < 1e-5


def apart(net: paddle.nn.Layer, images: list[np.ndarray]) -> float:
    """Difference of both modes on one batch, relative to the largest output."""
    batch, results = paddle.to_tensor(np.concatenate(images)), []
    with paddle.no_grad():
        for switch in (net.eval, net.train):
            switch()
            results.append(net(batch).numpy())
    return float(np.abs(results[1] - results[0]).max() / np.abs(results[0]).max())


def test_what_stays_of_the_parameters(tmp_path: Path) -> None:
    """Names, gradient flags, types, and the values of layers that read nothing changed.

    Nothing is left in gradients, and what is learned later has them.
    """
    net = made()
    net.first.weight.stop_gradient = True
    net.head.bias.stop_gradient = True
    before = {name: (p.name, p.stop_gradient, p.dtype) for name, p in net.named_parameters()}
    prepared = Prepared(net)
    plan, _ = prepared.cut_and_repaired(RATIOS, drawn_images(3), tmp_path)
    after = {name: (p.name, p.stop_gradient, p.dtype) for name, p in net.named_parameters()}
    assert after == before
    assert all(parameter.grad is None for parameter in net.parameters())
    state, cut = values(net), values(cut_only(Net, plan))
    assert {name: value.shape for name, value in state.items()} == {
        name: value.shape for name, value in cut.items()
    }
    untouched = {name for name in state if np.array_equal(state[name], cut[name])}
    assert untouched == {name for name in state if name.startswith("first")}
    loss = net(paddle.to_tensor(drawn_images(1)[0])).mean()
    loss.backward()
    assert net.second.weight.grad is not None and net.head.bias.grad is None


def test_training_mode_is_restored(tmp_path: Path) -> None:
    """As whoever calls it left it."""
    net = made()
    prepared = Prepared(net)
    net.train()
    prepared.cut_and_repaired(RATIOS, drawn_images(2), tmp_path)
    assert net.training and net.first_bn.training


def test_twice_the_same(tmp_path: Path) -> None:
    """The same seed gives the same bits; another one samples other positions."""
    images, results = drawn_images(5), []
    for number, seed in enumerate((3, 3, 4)):
        results.append(
            repaired(
                tmp_path / str(number), images, seed=seed, positions=30, choose=True,
                criterion="elimination",
            )
        )  # fmt: skip
    first, again, other = results
    assert_same(first[0], again[0])
    assert first[1].groups == again[1].groups
    assert first[2].as_dict() == again[2].as_dict()
    assert first[2].as_dict() != other[2].as_dict()


def test_the_order_of_images_does_not_matter(tmp_path: Path) -> None:
    """If all positions are seen, and no image is held out: to the rounding of float64 sums."""
    images = drawn_images(4)
    net, _, _ = repaired(tmp_path / "a", images, positions=ALL)
    other, _, _ = repaired(tmp_path / "b", images[::-1], positions=ALL)
    others = values(other)
    for name, value in values(net).items():
        np.testing.assert_allclose(value, others[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_nothing_depends_on_what_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without room for activations every layer runs from the images; the engine may fuse more."""
    images = drawn_images(3)
    net, _, repair = repaired(tmp_path / "a", images)
    monkeypatch.setattr(reconstruction_module, "KEPT_MB", 0)
    other, _, same = repaired(tmp_path / "b", images)
    others = values(other)
    for name, value in values(net).items():
        np.testing.assert_allclose(value, others[name], rtol=1e-3, atol=1e-4, err_msg=name)
    for left, right in zip(repair.layers, same.layers):
        assert left.after == pytest.approx(right.after, rel=1e-3)


@pytest.mark.parametrize(
    ("images", "positions"),
    [
        (drawn_images(1), ALL),
        (drawn_images(1), 1),
        ([np.zeros((1, 3, 8, 8), np.float32)] * 6, ALL),
        ([np.full((1, 3, 8, 8), 0.3, np.float32)] * 6, 12),
        (drawn_images(7), 7),
    ],
    ids=["one image", "one position", "black images", "grey images", "few positions"],
)
def test_images_that_say_little(images: list[np.ndarray], positions: int, tmp_path: Path) -> None:
    """All numbers are finite, those of the report as well, and no layer is worse on what it saw."""
    net, _, repair = repaired(
        tmp_path / "run", images, positions=positions, choose=True, criterion="elimination"
    )
    assert all(np.isfinite(value).all() for value in values(net).values())
    assert all(np.isfinite(one).all() for one in outputs(net, images))
    assert all(0.0 <= error.after <= error.before for error in repair.layers)
    json.dumps(repair.as_dict(), allow_nan=False)


def test_a_dead_layer(tmp_path: Path) -> None:
    """Its input is always zero: it keeps its weights, and the report has numbers."""
    net = made()
    net.second_bn.weight.set_value(np.zeros(10, np.float32))
    net.second_bn.bias.set_value(np.zeros(10, np.float32))
    weight = net.third.weight.numpy()
    _, repair = Prepared(net).cut_and_repaired({"first": 0.5}, drawn_images(6), tmp_path)
    assert np.array_equal(net.third.weight.numpy(), weight)
    json.dumps(repair.as_dict(), allow_nan=False)


@pytest.mark.parametrize("name", ["first.weight", "second_bn._mean", "head.bias"])
def test_a_weight_that_is_not_a_number(name: str, tmp_path: Path) -> None:
    net = made()
    parameter = dict(net.named_parameters())[name]
    value = parameter.numpy()
    value.ravel()[1] = np.nan
    parameter.set_value(value)
    before = values(net)
    with pytest.raises(LayerError) as caught:
        Prepared(net).cut_and_repaired(RATIOS, drawn_images(3), tmp_path, criterion="random")
    assert str(caught.value) == f"'{name}' holds numbers that are not finite"
    assert all(np.array_equal(v, before[n], equal_nan=True) for n, v in values(net).items())


def test_a_model_with_other_operators(tmp_path: Path) -> None:
    """What was observed does not fit it."""
    prepared = Prepared(made())
    made_of = prepared.reconstruction(drawn_images(1), tmp_path)
    made_of.observe(list(RATIOS), False, True)
    plan = prepared.plan(RATIOS)
    other = made()
    other.third = paddle.nn.Sequential(other.third, paddle.nn.ReLU())
    with pytest.raises(PlanError, match="has other operators than before"):
        made_of.repair(other, plan)


def test_what_is_said_of_a_repair(tmp_path: Path) -> None:
    _, _, repair = repaired(tmp_path / "run", drawn_images(3))
    before, after = (np.mean([getattr(e, w) for e in repair.layers]) for w in ("before", "after"))
    assert str(repair) == (
        f"repaired 3 layers on 3 images: mean relative error {before:.4f} -> {after:.4f}"
    )
    written = repair.as_dict()
    assert (written["images"], written["left"], written["ridge"]) == (3, {}, 1e-4)
    assert [list(one) for one in written["layers"]] == [["weight", "before", "after", "note"]] * 3


class ThereAndBack(paddle.nn.Layer):
    """The weight of `head` is used in two ways, so that it is not one matrix product."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = Conv2D(3, 4, 1), Conv2D(4, 6, 1, bias_attr=False)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return F.conv2d_transpose(self.head(self.first(x)), self.head.weight)


def test_a_reader_whose_error_is_not_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prepared = Prepared(ThereAndBack())
    made_of = prepared.reconstruction(drawn_images(2), tmp_path)
    made_of.observe(["first"], choose=False, repair=True)
    assert not caplog.messages
    with caplog.at_level(logging.WARNING, logger="slim_det"):
        made_of.observe(["first"], choose=True, repair=False)
    assert [message for message in caplog.messages if "head" in message] == [
        "'head.weight' reads channels of first, but not as one matrix product: its error is not "
        "counted"
    ]

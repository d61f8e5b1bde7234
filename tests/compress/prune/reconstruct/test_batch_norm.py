"""Batch norms get the statistics of what they read, and compute what they did."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from paddle.nn import BatchNorm1D, BatchNorm2D, Conv2D, Linear

from slim_det.compress.prune.reconstruct.batch_norm import BatchNormStatistics
from slim_det.compress.tensors import set_parameter
from slim_det.graph.staged_run import StagedRun, store_images
from tests.compress.prune.reconstruct.nets import (
    Prepared,
    changed,
    drawn_images,
    outputs,
    values,
)

pytestmark = pytest.mark.usefixtures("ppdet_registered")

TOLERANCE = 1e-5
"""Of the largest output: float32 sums, and vectors that were rounded to float32 once more."""


class Net(paddle.nn.Layer):
    """Two batch norms behind convolutions, one on vectors; their statistics are far from true."""

    def __init__(self, two: bool = True) -> None:
        super().__init__()
        self.two = two
        self.first = Conv2D(3, 6, 3, padding=1)
        self.bn = BatchNorm2D(6, epsilon=1e-3)
        self.second = Conv2D(6, 4, 3, stride=2)
        self.other = BatchNorm2D(4)
        self.line = Linear(4, 5)
        self.vectors = BatchNorm1D(5)

    def forward(self, x: paddle.Tensor) -> Any:
        x = self.bn(self.first(x))
        x = self.other(self.second(F.leaky_relu(x, 0.2)))
        return self.vectors(self.line(x.mean([2, 3]))) if self.two else x


def drawn(seed: int = 0, **settings: Any) -> Net:
    paddle.seed(seed)
    net = Net(**settings)
    rng = np.random.default_rng(seed)
    for layer in net.sublayers():
        if isinstance(layer, (BatchNorm1D, BatchNorm2D)):
            for vector in (layer.weight, layer.bias, layer._mean):
                vector.set_value(rng.normal(size=vector.shape).astype("float32"))
            layer._variance.set_value(rng.uniform(0.1, 5, layer._variance.shape).astype("float32"))
    return net


def restate(
    net: paddle.nn.Layer,
    images: list[np.ndarray],
    folder: Path,
    chosen: Callable[[int], bool] = lambda index: True,
) -> None:
    """Restate batch norms of a network in place, all by default."""
    prepared = Prepared(net)
    program = prepared.program()
    (folder / "images").mkdir()
    store, count = store_images(({"x": i} for i in images), program.feeds, folder / "images")
    norms = [i for i, op in enumerate(program.ops) if op.type == "batch_norm"]
    run = StagedRun(program, store, count, folder, threads=1)
    BatchNormStatistics([norm for place, norm in enumerate(norms) if chosen(place)]).restate(run)
    parameters = dict(net.named_parameters())
    for variable, name in prepared.parameters.items():
        if variable in program.parameters:
            set_parameter(parameters[name], program.value(variable))


def assert_same_outputs(left: list[np.ndarray], right: list[np.ndarray]) -> None:
    for a, b in zip(left, right):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE * np.abs(b).max())


def test_evaluation_is_the_same(tmp_path: Path) -> None:
    net, images = drawn(), drawn_images(4)
    before, old = outputs(net, images), values(net)
    restate(net, images, tmp_path)
    assert_same_outputs(outputs(net, images), before)
    names = set(changed(old, values(net)))
    assert names == {
        f"{norm}.{vector}"
        for norm in ("bn", "other", "vectors")
        for vector in ("weight", "bias", "_mean", "_variance")
    }


def test_true_statistics(tmp_path: Path) -> None:
    """Mean and variance of all pixels of all images, as numpy finds them."""
    net, images = drawn(), drawn_images(4)
    restate(net, images, tmp_path)
    with paddle.no_grad():
        read = np.concatenate([net.first(paddle.to_tensor(image)).numpy() for image in images])
    np.testing.assert_allclose(net.bn._mean.numpy(), read.mean((0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(net.bn._variance.numpy(), read.var((0, 2, 3)), rtol=1e-5)


def test_training_on_all_images_is_evaluation(tmp_path: Path) -> None:
    """With batch statistics of exactly these images; before, both modes were far apart."""
    net, images = drawn(two=False), drawn_images(6)
    batch = paddle.to_tensor(np.concatenate(images))

    def apart() -> float:
        saved = values(net)
        results = []
        for mode in (True, False):
            net.train() if mode else net.eval()
            with paddle.no_grad():
                results.append(net(batch).numpy())
            for name, parameter in net.named_parameters():
                parameter.set_value(saved[name])  # running statistics have moved
        return float(np.abs(results[0] - results[1]).max() / np.abs(results[1]).max())

    assert apart() > 0.1
    restate(net, images, tmp_path)
    assert apart() < 1e-4  # float32 variances of a batch, twice in a row


def test_true_statistics_stay(tmp_path: Path) -> None:
    """A second time, nothing changes but the last digits."""
    net, images = drawn(), drawn_images(4)
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
    restate(net, images, tmp_path / "once")
    once = values(net)
    restate(net, images, tmp_path / "twice")
    for name, value in values(net).items():
        np.testing.assert_allclose(value, once[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_no_batch_norms(tmp_path: Path) -> None:
    net, images = drawn(), drawn_images(2)
    old = values(net)
    restate(net, images, tmp_path, lambda index: False)
    assert not list(changed(old, values(net)))


def test_only_those_that_are_named(tmp_path: Path) -> None:
    net, images = drawn(), drawn_images(2)
    before, old = outputs(net, images), values(net)
    restate(net, images, tmp_path, lambda index: index == 1)
    assert {name.split(".")[0] for name in changed(old, values(net))} == {"other"}
    assert_same_outputs(outputs(net, images), before)


def test_channels_without_spread(tmp_path: Path) -> None:
    """A constant channel has variance zero, which epsilon makes harmless."""
    net, images = drawn(), drawn_images(3)
    weight = net.first.weight.numpy()
    weight[2] = 0.0
    net.first.weight.set_value(weight)
    net.bn._mean.set_value(np.zeros(6, np.float32))
    before = outputs(net, images)
    restate(net, images, tmp_path)
    assert net.bn._variance.numpy()[2] == pytest.approx(0.0, abs=1e-9)
    assert all(np.isfinite(value).all() for value in values(net).values())
    assert_same_outputs(outputs(net, images), before)


class Shared(paddle.nn.Layer):
    """One batch norm on two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = Conv2D(3, 4, 1), Conv2D(3, 4, 3, padding=1)
        self.bn = BatchNorm2D(4)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.bn(self.left(x)) - F.relu(self.bn(self.right(x)))


def test_a_batch_norm_of_two_tensors(tmp_path: Path) -> None:
    """Statistics of both together, and both outputs are the same."""
    paddle.seed(0)
    net, images = Shared(), drawn_images(3)
    before = outputs(net, images)
    restate(net, images, tmp_path)
    assert_same_outputs(outputs(net, images), before)
    with paddle.no_grad():
        batch = paddle.to_tensor(np.concatenate(images))
        read = np.concatenate([net.left(batch).numpy(), net.right(batch).numpy()])
    np.testing.assert_allclose(net.bn._mean.numpy(), read.mean((0, 2, 3)), atol=1e-5)
    np.testing.assert_allclose(net.bn._variance.numpy(), read.var((0, 2, 3)), rtol=1e-4)

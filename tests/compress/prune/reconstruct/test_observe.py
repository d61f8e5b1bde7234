"""What the unpruned model computes at chosen positions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import paddle
import pytest

from slim_det.compress.prune.reconstruct.layers import linear_layers
from slim_det.compress.prune.reconstruct.observe import (
    Observed,
    Sampling,
    check_parameters,
    observe,
)
from slim_det.core.errors import LayerError
from slim_det.graph.staged_run import StagedRun, store_images
from tests.compress.prune.reconstruct.nets import Prepared, drawn_images
from tests.compress.prune.small_net import SmallNet
from tests.support import assert_same_sums

ALL = 10**6


def small() -> Prepared:
    paddle.seed(0)
    return Prepared(SmallNet())


def seen(
    prepared: Prepared,
    images: list[np.ndarray],
    folder: Path,
    readers: tuple[str, ...] = (),
    repaired: tuple[str, ...] = (),
    positions: int = ALL,
    seed: int = 0,
) -> Observed:
    """Layers are named without `.weight`."""
    program = prepared.program()
    store, count = store_images(iter({"x": image} for image in images), ["x"], folder)
    (folder / "work").mkdir()
    run = StagedRun(program, store, count, folder / "work", threads=1)
    layers = linear_layers(program, prepared.parameters)
    wanted = ([layers[f"{name}.weight"] for name in part] for part in (readers, repaired))
    return observe(run, Sampling(positions, count, seed), *wanted, sums_behind={})


@pytest.mark.parametrize(("positions", "images", "each"), [(1, 1, 1), (10, 4, 3), (9, 3, 3)])
def test_positions_are_shared_by_the_images(positions: int, images: int, each: int) -> None:
    """Rounded up: no fewer than asked for."""
    sampling = Sampling(positions, images)
    for image in range(images):
        chosen = sampling.choose(image, 5, 100)
        assert len(chosen) == len(set(chosen)) == each
        assert list(chosen) == sorted(chosen)
        assert 0 <= chosen.min() and chosen.max() < 100


def test_small_layers_are_seen_completely() -> None:
    for available in (1, 7, 8):
        assert Sampling(16, 2).choose(0, 0, available).tolist() == list(range(available))
    assert len(Sampling(16, 2).choose(0, 0, 9)) == 8


def test_the_choice_follows_from_the_seed() -> None:
    """The same at every call; another for each image, layer and seed."""
    first = Sampling(50, 5, seed=3).choose(1, 2, 1000).tolist()
    assert Sampling(50, 5, seed=3).choose(1, 2, 1000).tolist() == first
    others = [(3, 0, 2), (3, 1, 3), (4, 1, 2)]
    for seed, image, use in others:
        assert Sampling(50, 5, seed).choose(image, use, 1000).tolist() != first


def test_every_position_may_be_chosen() -> None:
    sampling = Sampling(5, 1)
    found = {int(p) for use in range(200) for p in sampling.choose(0, use, 10)}
    assert found == set(range(10))


def test_nothing_is_wanted(tmp_path: Path) -> None:
    assert seen(small(), drawn_images(2), tmp_path) == Observed()


def test_targets_are_outputs_without_bias(tmp_path: Path) -> None:
    """At all positions, row by row, for each image."""
    prepared, images = small(), drawn_images(3)
    found = seen(prepared, images, tmp_path, repaired=("stem", "inner"))
    assert {name for name, _ in found.targets} == {"stem.weight", "inner.weight"}
    assert found.inputs == {}
    for (name, _), targets in found.targets.items():
        assert len(targets) == 3
        for image, rows in zip(images, targets):
            x = paddle.to_tensor(image)
            y = prepared.net.stem(x)
            if name == "inner.weight":
                y = prepared.net.depthwise(paddle.nn.functional.relu(prepared.net.bn(y)))
                y = prepared.net.inner(y) - prepared.net.inner.bias.reshape([1, -1, 1, 1])
            expected = y.numpy()[0].reshape(y.shape[1], -1).T
            assert rows.dtype == np.float32
            assert_same_sums(rows, expected, name)


def test_grouped_targets_have_their_channels_in_order(tmp_path: Path) -> None:
    paddle.seed(0)
    net = paddle.nn.Conv2D(3, 6, 3, groups=3, bias_attr=False)
    prepared, images = Prepared(paddle.nn.Sequential(net)), drawn_images(1)
    (targets,) = seen(prepared, images, tmp_path, repaired=("0",)).targets.values()
    assert_same_sums(targets[0], net(paddle.to_tensor(images[0])).numpy()[0].reshape(6, -1).T)


def test_moments_of_a_one_pixel_layer(tmp_path: Path) -> None:
    """Sums over all pixels of all images, less the mean, since there is a bias."""
    images, prepared = drawn_images(3), Prepared(paddle.nn.Sequential(paddle.nn.Conv2D(3, 2, 1)))
    found = seen(prepared, images, tmp_path, readers=("0",))
    pixels = np.concatenate([image[0].reshape(3, -1).T for image in images]).astype(np.float64)
    inputs = found.inputs["0.weight"]
    assert inputs.count == len(pixels)
    np.testing.assert_allclose(inputs.x[0], pixels.sum(0), rtol=1e-9)
    centred = pixels - pixels.mean(0)
    np.testing.assert_allclose(inputs.squares[0], centred.T @ centred, rtol=1e-9)


def test_inputs_of_a_layer_without_an_intercept(tmp_path: Path) -> None:
    """Its inputs keep their mean."""
    layer = paddle.nn.Conv2D(3, 2, 1, bias_attr=False)
    prepared, images = Prepared(paddle.nn.Sequential(layer)), drawn_images(2)
    found = seen(prepared, images, tmp_path, readers=("0",))
    pixels = np.concatenate([image[0].reshape(3, -1).T for image in images]).astype(np.float64)
    np.testing.assert_allclose(found.inputs["0.weight"].squares[0], pixels.T @ pixels, rtol=1e-9)


def test_fewer_positions_are_some_of_all(tmp_path: Path) -> None:
    prepared, images = small(), drawn_images(2)
    folders = [tmp_path / "all", tmp_path / "some"]
    for folder in folders:
        folder.mkdir()
    (every,) = seen(prepared, images, folders[0], repaired=("stem",)).targets.values()
    (some,) = seen(prepared, images, folders[1], repaired=("stem",), positions=20).targets.values()
    for index, (complete, rows) in enumerate(zip(every, some)):
        assert rows.shape == (10, 4)
        use = next(iter(linear_layers(prepared.program(), prepared.parameters).values())).uses[0]
        chosen = Sampling(20, 2).choose(index, use, 64)
        assert_same_sums(rows, complete[chosen])


def test_parameters_that_are_finite() -> None:
    prepared = small()
    check_parameters(prepared.program(), prepared.parameters)


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
@pytest.mark.parametrize("name", ["inner.weight", "head.bias", "bn._variance"])
def test_one_number_that_is_not_finite(name: str, number: float) -> None:
    prepared = small()
    parameter = dict(prepared.net.named_parameters())[name]
    values = parameter.numpy()
    values.ravel()[1] = number
    parameter.set_value(values)
    with pytest.raises(LayerError) as caught:
        check_parameters(prepared.program(), prepared.parameters)
    assert str(caught.value) == f"'{name}' holds numbers that are not finite"


@pytest.mark.parametrize("part", ["readers", "repaired"])
def test_outputs_that_are_too_large(part: str, tmp_path: Path) -> None:
    """Of finite weights: the first layer that is watched behind them is named."""
    prepared = small()
    for layer in (prepared.net.stem, prepared.net.depthwise):
        layer.weight.set_value(np.full(layer.weight.shape, 1e30, np.float32))
    with pytest.raises(LayerError) as caught:
        seen(prepared, drawn_images(2), tmp_path, **{part: ("inner", "head")})
    assert str(caught.value) == (
        "'inner.weight' reads or makes numbers that are not finite; the weights before "
        "it are too large"
    )

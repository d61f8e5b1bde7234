"""What an elimination needs of a group: its readers, and the rows of each unit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.nn import Conv2D, Linear

from slim_det.compress.prune.reconstruct.elimination import eliminate
from slim_det.compress.prune.reconstruct.layers import linear_layers
from slim_det.compress.prune.reconstruct.moments import Inputs, MomentSums, inputs_of
from slim_det.compress.prune.reconstruct.readers import readers_of, reading_layers, unit_rows
from tests.compress.prune.reconstruct.nets import Prepared, drawn_images
from tests.compress.prune.small_net import SmallNet

IDS = np.array


@pytest.mark.parametrize(
    ("units", "ids", "size", "rows"),
    [
        ([7], [7], 1, [[0]]),
        ([7, 8], [8, 7], 1, [[1], [0]]),
        ([7, 8], [7, 8], 3, [[0, 1, 2], [3, 4, 5]]),
        ([7, 8], [9, 8, 9, 7], 2, [[6, 7], [2, 3]]),  # others are read beside
        ([7, 8], [7, 8, 7], 1, [[0, 2], [1, -1]]),  # concatenated twice
        ([7, 8], [7, 7], 2, [[0, 1, 2, 3], [-1, -1, -1, -1]]),  # one is not read
    ],
)
def test_rows_of_units(units: list[int], ids: list[int], size: int, rows: list[Any]) -> None:
    assert unit_rows(IDS(units), IDS(ids), size).tolist() == rows


def names_reading(prepared: Prepared, *groups: str) -> list[str]:
    layers = linear_layers(prepared.program(), prepared.parameters)
    return [one.weight for one in reading_layers(prepared.groups, list(groups), layers)]


def test_layers_that_read_a_group() -> None:
    """Depthwise layers and batch norm pass channels on; they read none."""
    prepared = Prepared(SmallNet())
    assert names_reading(prepared, "stem") == ["inner.weight", "head.weight"]
    assert names_reading(prepared, "inner") == ["outer.weight"]
    assert names_reading(prepared, "stem", "inner") == [
        "inner.weight",
        "outer.weight",
        "head.weight",
    ]


class Grouped(paddle.nn.Layer):
    """Four channels in two groups that are read by a grouped layer, and flattened by a linear."""

    def __init__(self) -> None:
        super().__init__()
        self.make = Conv2D(3, 4, 1)
        self.read = Conv2D(4, 6, 1, groups=2, bias_attr=False)
        self.flat = Linear(4 * 64, 2)

    def forward(self, x: paddle.Tensor) -> Any:
        x = self.make(x)
        return self.read(x), self.flat(x.flatten(1))


def inputs(groups: int, size: int, seed: int, centre: bool) -> Inputs:
    x = np.random.default_rng(seed).normal(size=(groups, 2 * size, size)) + 1.0
    sums = MomentSums()
    sums.add(x, np.zeros((*x.shape[:2], 0)))
    return inputs_of(sums.total(), centre)


def test_one_reader_for_each_part() -> None:
    """Channels 0 and 2 are one unit, as 1 and 3 are; with 64 rows of the linear layer for each.

    Removing all but one unit costs what the parts cost that were made by hand.
    """
    paddle.seed(0)
    prepared = Prepared(Grouped())
    program, group = prepared.program(), prepared.groups.groups["make"]
    assert len(group.units) == 2
    layers = linear_layers(program, prepared.parameters)
    seen = {"read.weight": inputs(2, 2, 0, False), "flat.weight": inputs(1, 256, 1, True)}
    found = readers_of(group, prepared.groups, program, layers, seen, 1e-3)
    assert len(found) == 3
    costs = sum(reader.costs(np.arange(2)) for reader in found)
    kernel = prepared.net.read.weight.numpy().reshape(2, 3, 2).transpose(0, 2, 1)
    expected = np.zeros(2)
    for part in range(2):
        squares = seen["read.weight"].squares[part]
        expected += [cost(squares, kernel[part], [unit]) for unit in (0, 1)]
    flat = prepared.net.flat.weight.numpy()
    for unit in (0, 1):
        rows = [*range(64 * unit, 64 * unit + 64), *range(64 * unit + 128, 64 * unit + 192)]
        expected[unit] += cost(seen["flat.weight"].squares[0], flat, rows)
    np.testing.assert_allclose(costs, expected, rtol=1e-6)
    cheapest = eliminate(found, 2, 1, np.ones((1, 2), bool))
    assert cheapest.order.tolist() == [int(np.argmin(expected))]


def cost(moment: np.ndarray, weights: np.ndarray, gone: list[int]) -> float:
    """Relative error after the other rows are solved for again, ridge 1e-3."""
    weights = weights.astype(np.float64)
    system = moment + 1e-3 * np.trace(moment) / len(moment) * np.eye(len(moment))
    left = [row for row in range(len(moment)) if row not in gone]
    change = -weights.copy()
    change[left] = np.linalg.solve(
        system[np.ix_(left, left)], system[np.ix_(left, gone)] @ weights[gone]
    )
    energy = np.einsum("dm,dm->", weights, moment @ weights)
    change[gone] = -weights[gone]
    return float(np.einsum("dm,dm->", change, system @ change) / energy)


class Twice(paddle.nn.Layer):
    """Channels 0 and 2 of the stem are equal; the next layer reads them beside the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = Conv2D(3, 4, 1), Conv2D(7, 2, 1)
        weight = self.stem.weight.numpy()
        weight[2] = weight[0]
        self.stem.weight.set_value(weight)
        self.stem.bias.set_value(np.array([0.5, 0.0, 0.5, 1.0], "float32"))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.head(paddle.concat([paddle.nn.functional.relu(self.stem(x)), x], 1))


def solved_without(prepared: Prepared, places: list[int], tmp_path: Path) -> dict[str, np.ndarray]:
    """Parameters by name, solved for without some units of the stem."""
    made = prepared.reconstruction(drawn_images(6), tmp_path, positions=10**6, ridge=1e-9)
    made.observe(["stem"], choose=True, repair=False)
    made.eliminate(prepared.groups.groups["stem"], 1)
    (found,) = made.readers_without(prepared.groups.groups["stem"], [np.array(places)])
    return {prepared.parameters[variable]: value for variable, value in found.items()}


def test_a_twin_takes_over(tmp_path: Path) -> None:
    """The weights of both add up in the one that stays; nothing else changes."""
    paddle.seed(1)
    prepared = Prepared(Twice())
    old = prepared.net.head.weight.numpy()
    found = solved_without(prepared, [2], tmp_path)
    expected = old.copy()
    expected[:, 0] += old[:, 2]
    expected[:, 2] = 0.0
    np.testing.assert_allclose(found["head.weight"], expected, atol=1e-4)
    np.testing.assert_allclose(found["head.bias"], prepared.net.head.bias.numpy(), atol=1e-4)
    assert set(found) == {"head.weight", "head.bias"}
    np.testing.assert_array_equal(prepared.net.head.weight.numpy(), old)


def test_the_intercept_keeps_the_means(tmp_path: Path) -> None:
    """What no other input replaces leaves an error, but none of the mean."""
    paddle.seed(1)
    prepared = Prepared(Twice())
    images = paddle.to_tensor(np.concatenate(drawn_images(6)))
    want = prepared.net(images).numpy()
    for name, value in solved_without(prepared, [1, 3], tmp_path).items():
        dict(prepared.net.named_parameters())[name].set_value(value)
    got = prepared.net(images).numpy()
    assert np.abs(got - want).max() > 1e-3
    np.testing.assert_allclose(got.mean((0, 2, 3)), want.mean((0, 2, 3)), atol=1e-5)

"""Elimination, compared with brute force over subsets of channels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest

from slim_det.compress.prune.reconstruct import elimination as elimination_module
from slim_det.compress.prune.reconstruct.elimination import Elimination, Reader, eliminate

RIDGE = 1e-3


@dataclass(frozen=True)
class Layer:
    """What one layer reads and multiplies.

    Attributes:
        x: Inputs [P, D].
        weights: [D, M].
        rows: Rows of each unit, [U, B], -1 for none.
        ridge: Relative to the mean square of the inputs.
    """

    x: np.ndarray
    weights: np.ndarray
    rows: np.ndarray
    ridge: float = RIDGE

    @property
    def reader(self) -> Reader:
        return Reader(self.x.T @ self.x, self.weights, self.rows, self.ridge)

    def cost(self, removed: tuple[int, ...]) -> float:
        """Smallest relative error without these units, from the data alone.

        It is the least-squares problem for the weights of the other rows, with the ridge as more
        rows of data.
        """
        gone = self.rows[list(removed)].ravel()
        left = np.setdiff1d(np.arange(len(self.weights)), gone[gone >= 0])
        root = np.sqrt(self.ridge * np.square(self.x).sum() / self.x.shape[1])
        data = np.concatenate([self.x, root * np.eye(self.x.shape[1])])
        targets = data @ self.weights
        found = np.linalg.lstsq(data[:, left], targets, rcond=None)[0]
        error = np.square(targets - data[:, left] @ found).sum()
        return float(error / np.square(self.x @ self.weights).sum())


def drawn(
    seed: int, units: int = 6, block: int = 1, fixed: int = 0, outputs: int = 3, rank: int = 4
) -> Layer:
    """Inputs of which some are near to combinations of others.

    Args:
        seed: Of everything.
        units: Number of units.
        block: Rows of each.
        fixed: Rows that belong to no unit.
        outputs: Columns of the weight.
        rank: How many independent inputs there are, but for some noise.
    """
    rng = np.random.default_rng(seed)
    size = units * block + fixed
    x = rng.normal(size=(60, rank)) @ rng.normal(size=(rank, size))
    x += 0.3 * rng.normal(size=x.shape)
    rows = rng.permutation(size)[: units * block].reshape(units, block)
    return Layer(x, rng.normal(size=(size, outputs)), rows)


def run(
    *layers: Layer, units: int | None = None, count: int | None = None, holders: list[str] = ()
) -> Elimination:
    """Holders are strings with an `x` for every unit that they have."""
    units = len(layers[0].rows) if units is None else units
    held = [[sign == "x" for sign in holder] for holder in holders] or [[True] * units]
    count = units - 1 if count is None else count
    return eliminate([one.reader for one in layers], units, count, np.array(held, bool))


def total(layers: tuple[Layer, ...], removed: tuple[int, ...]) -> float:
    return sum(layer.cost(removed) for layer in layers)


def assert_costs_are_true(found: Elimination, *layers: Layer) -> None:
    """Every error is the optimum for the units that were removed.

    1e-6 relative: lstsq and the inverse work on matrices of condition up to 1 / ridge.
    """
    expected = [total(layers, tuple(found.order[: i + 1])) for i in range(len(found.order))]
    np.testing.assert_allclose(found.errors, expected, rtol=1e-6, atol=1e-12)


def test_nothing_to_remove() -> None:
    found = run(drawn(0), count=0)
    assert (len(found.order), len(found.errors)) == (0, 0)
    assert (found.order.dtype, found.errors.dtype) == (np.int64, np.float64)


def test_nothing_reads_the_units() -> None:
    found = run(units=4)
    assert sorted(found.order) == [0, 1, 2]
    assert found.errors.tolist() == [0.0, 0.0, 0.0]


def test_independent_inputs_by_hand() -> None:
    """Outputs have the energies 4, 1 and 9 of 14, and none replaces another (ridge: 1e-9)."""
    layer = Layer(np.eye(3), np.diag([2.0, 1.0, 3.0]), np.arange(3)[:, None], ridge=1e-9)
    found = run(layer)
    assert found.order.tolist() == [1, 0]
    np.testing.assert_allclose(found.errors, [1 / 14, 5 / 14], rtol=1e-8)


@pytest.mark.parametrize("block", [1, 3])
def test_a_duplicate_goes_first(block: int) -> None:
    """It costs at most what its twin pays for weights of double size: the ridge of that change."""
    layer = drawn(1, block=block, rank=6 * block)
    layer.x[:, layer.rows[4]] = layer.x[:, layer.rows[1]]
    found = run(layer)
    assert found.order[0] in (1, 4)
    penalty = layer.ridge * np.square(layer.x).sum() / layer.x.shape[1]
    moved = layer.weights[layer.rows[found.order[0]]]
    energy = np.square(layer.x @ layer.weights).sum()
    assert found.errors[0] <= 2 * penalty * np.square(moved).sum() / energy
    assert found.errors[1] > 5 * found.errors[0]
    assert_costs_are_true(found, layer)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", [(9, 1, 0), (7, 1, 3), (5, 4, 0), (4, 3, 5)], ids=str)
def test_costs_are_the_true_optimum(shape: tuple[int, int, int], seed: int) -> None:
    """Also with blocks of several rows, and beside inputs that stay."""
    units, block, fixed = shape
    layer = drawn(seed, units, block, fixed)
    count = units - (not fixed)
    assert_costs_are_true(run(layer, count=count, holders=["x" * units]), layer)


def test_errors_only_grow() -> None:
    for seed in range(5):
        errors = run(drawn(seed, 9)).errors
        assert (np.diff(errors) >= 0).all() and errors[0] >= 0


@pytest.mark.parametrize("seed", range(4))
def test_each_choice_is_the_best_next_one(seed: int) -> None:
    layers = drawn(seed, 7), drawn(seed + 10, 7, fixed=2)
    removed: tuple[int, ...] = ()
    for unit in run(*layers).order:
        left = [u for u in range(7) if u not in removed]
        assert unit == min(left, key=lambda u: total(layers, (*removed, u)))
        removed = (*removed, int(unit))


def test_how_far_from_the_best_subset() -> None:
    """A greedy choice never beats the best subset, and the first unit is the best.

    These 12 problems are hard: 8 to 10 inputs are nearly combinations of 4. At most of the counts
    the greedy choice is the best subset; the largest error that was measured is 4.3 times that of
    the best subset, the mean 1.3 times.
    """
    shares = []
    for seed in range(12):
        units = 8 + seed % 3
        layer = drawn(seed, units)
        found = run(layer)
        for removed in range(1, units):
            best = min(layer.cost(subset) for subset in combinations(range(units), removed))
            shares.append(found.errors[removed - 1] / best)
            assert removed > 1 or shares[-1] == pytest.approx(1.0, rel=1e-6)
    assert min(shares) > 1 - 1e-6
    assert np.median(shares) < 1 + 1e-6
    assert np.mean(shares) < 1.4
    assert max(shares) < 5.0


@pytest.mark.parametrize("seed", range(3))
def test_several_readers(seed: int) -> None:
    """Costs are summed, each relative to the energy of its reader."""
    layers = drawn(seed, 6), drawn(seed + 10, 6, block=2, outputs=1), drawn(seed + 20, 6, fixed=3)
    assert_costs_are_true(run(*layers), *layers)


def test_a_reader_counts_by_its_share() -> None:
    """The size of its weights does not matter: all errors are relative."""
    one, other = drawn(0), drawn(1)
    large = Layer(other.x, 1000 * other.weights, other.rows)
    found, same = run(one, other), run(one, large)
    assert found.order.tolist() == same.order.tolist()
    np.testing.assert_allclose(found.errors, same.errors, rtol=1e-9)


def test_units_of_different_size() -> None:
    """Unit 0 has both rows, 1 and 3 only one, and 2 is not read at all."""
    layer = drawn(2, units=4, block=2)
    rows = layer.rows.copy()
    rows[1, 1] = rows[2, 0] = rows[2, 1] = rows[3, 0] = -1
    layer = Layer(layer.x, layer.weights, rows)
    found = run(layer)
    assert found.order[0] == 2 and found.errors[0] == 0.0
    assert_costs_are_true(found, layer)


def test_padding_changes_nothing() -> None:
    layer = drawn(3, units=5, fixed=2)
    padded = Layer(
        layer.x, layer.weights, np.concatenate([layer.rows, np.full((5, 2), -1)], axis=1)
    )
    found, same = run(layer), run(padded)
    assert found.order.tolist() == same.order.tolist()
    np.testing.assert_allclose(found.errors, same.errors, rtol=1e-9)


@pytest.mark.parametrize("period", [1, 2, 3, 5])
@pytest.mark.parametrize("block", [1, 3])
def test_updates_may_wait(period: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long, the result is that of updates at once; 1e-9 for the order of float64 sums."""
    layer = drawn(4, units=9, block=block, fixed=2)
    narrow = Layer(layer.x, layer.weights, np.where(layer.rows % 4, layer.rows, -1))
    monkeypatch.setattr(elimination_module, "_PERIOD", 32)
    expected = run(layer, narrow)
    monkeypatch.setattr(elimination_module, "_PERIOD", period)
    found = run(layer, narrow)
    assert found.order.tolist() == expected.order.tolist()
    np.testing.assert_allclose(found.errors, expected.errors, rtol=1e-9)
    assert_costs_are_true(found, layer, narrow)


@pytest.mark.parametrize("seed", range(3))
def test_costs_of_earlier_removals_choose_nearly_as_well(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many units most costs are lower bounds. The errors are true, and near to those of the
    greedy choice, above and below it: the mean over all counts was within 1.3 % for six seeds.
    """
    layer = drawn(seed, units=160, block=2, outputs=5, rank=120)
    layer = Layer(np.tile(layer.x, (8, 1)) + np.random.default_rng(seed).normal(
        size=(480, 320)), layer.weights, layer.rows)  # fmt: skip
    found = run(layer, count=140)
    monkeypatch.setattr(elimination_module, "_PERIOD", 1)
    greedy = run(layer, count=140)
    assert found.errors[-1] == pytest.approx(layer.cost(tuple(found.order)), rel=1e-6)
    assert np.mean(found.errors / greedy.errors) == pytest.approx(1.0, abs=0.02)


def test_every_holder_keeps_one() -> None:
    """Units 0 and 1 cost nothing, but one tensor consists of them, and another of 5 alone."""
    layer = drawn(5)
    layer.weights[layer.rows[[0, 1, 5]]] = 0.0
    assert set(run(layer, count=3).order) == {0, 1, 5}
    found = run(layer, count=6, holders=["xx....", "..xxx.", ".....x"])
    assert len(found.order) == 3
    assert 5 not in found.order
    assert len({0, 1} & set(found.order)) == 1
    assert len({2, 3, 4} & set(found.order)) == 2
    assert_costs_are_true(found, layer)


def test_holders_that_overlap() -> None:
    found = run(drawn(6), count=6, holders=["xxxxxx", "xx....", ".xx..."])
    left = set(range(6)) - set(found.order)
    assert len(found.order) in (4, 5) and left & {0, 1} and left & {1, 2}


def test_units_are_not_removed_twice() -> None:
    found = run(drawn(7, 8), count=100)
    assert len(found.order) == len(set(found.order)) == 7


def test_the_holders_stay_as_they_are() -> None:
    holders = np.ones((2, 6), bool)
    eliminate([drawn(0).reader], 6, 5, holders)
    assert holders.all()


@pytest.mark.parametrize("what", ["x", "weights"])
def test_a_reader_that_is_zero(what: str) -> None:
    """Nothing is lost by removing what has no effect, and the other reader decides."""
    layer, other = drawn(8), drawn(9)
    getattr(layer, what)[...] = 0.0
    assert run(layer).errors.tolist() == [0.0] * 5
    found, alone = run(layer, other), run(other)
    assert found.order.tolist() == alone.order.tolist()
    assert found.errors.tolist() == alone.errors.tolist()


def test_units_that_are_zero_go_first() -> None:
    layer = drawn(10)
    layer.x[:, layer.rows[3]] = 0.0
    layer.weights[layer.rows[1]] = 0.0
    found = run(layer)
    assert set(found.order[:2]) == {1, 3}
    assert_costs_are_true(found, layer)


def test_one_output_position() -> None:
    """H has rank one: all but one unit cost next to nothing, since one input gives the output."""
    layer = drawn(11, outputs=1)
    found = run(Layer(layer.x[:1], layer.weights, layer.rows))
    assert_costs_are_true(found, Layer(layer.x[:1], layer.weights, layer.rows))
    assert np.isfinite(found.errors).all()


@pytest.mark.parametrize("ridge", [1e-8, 1e-12])
def test_a_very_small_ridge(ridge: float) -> None:
    """Inputs that are the same twice: the copies go first, and the rest has finite costs."""
    layer = drawn(12, units=6, rank=6)
    layer.x[:, layer.rows[[1, 2]]] = layer.x[:, layer.rows[[4, 5]]]
    found = run(Layer(layer.x, layer.weights, layer.rows, ridge))
    assert sorted(int(unit) % 3 for unit in found.order[:2]) == [1, 2]
    assert np.isfinite(found.errors).all()
    assert found.errors[1] < 1e-4 < found.errors[2]


@pytest.mark.parametrize("ridge", [1e-8, 1e-3])
def test_many_inputs_at_few_positions(ridge: float) -> None:
    """H has rank 20 of 540. No cost is below zero or above that of weights that are all zero."""
    rng = np.random.default_rng(13)
    x = rng.normal(size=(20, 540)) * 10.0 ** rng.uniform(-3, 1, 540)
    layer = Layer(x, rng.normal(size=(540, 4)), np.arange(540).reshape(60, 9), ridge)
    found = run(layer)
    penalty = ridge * np.square(x).sum() / 540
    most = 1 + penalty * np.square(layer.weights).sum() / np.square(x @ layer.weights).sum()
    assert (np.diff(found.errors) >= 0).all()
    assert 0.0 <= found.errors[0] and 0.1 < found.errors[-1] <= most
    last = tuple(found.order)
    assert found.errors[-1] == pytest.approx(layer.cost(last), rel=1e-4)


def test_the_order_of_memory_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of a convolution are a transposed view; delayed updates have to reach them."""
    monkeypatch.setattr(elimination_module, "_PERIOD", 4)
    rng = np.random.default_rng(5)
    inputs = rng.normal(size=(200, 12)) @ rng.normal(size=(12, 12))
    weights = rng.normal(size=(12, 5))
    found = [
        eliminate(
            [Reader(inputs.T @ inputs, stored, np.arange(12)[:, None], RIDGE)],
            12,
            11,
            np.ones((1, 12), bool),
        )
        for stored in (weights, np.asfortranarray(weights))
    ]
    assert found[0].order.tolist() == found[1].order.tolist()
    np.testing.assert_allclose(found[0].errors, found[1].errors, rtol=1e-9)

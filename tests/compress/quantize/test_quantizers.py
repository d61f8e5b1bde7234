"""Ranges: how they move, who shares them, and what a weight's are."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from paddle.utils import unique_name

from slim_det.compress.quantize.quantizers import (
    AbsMaxWeight,
    ObservedRange,
    SharedRange,
    absolute_max,
    channel_max,
    fixed_parameter,
)
from slim_det.compress.quantize.rounding import MIN_RANGE
from slim_det.graph.integers import to_integers


def observed(start: float = 4.0, **settings: bool) -> ObservedRange:
    """A range in training that keeps three quarters of itself."""
    quantizer = ObservedRange("x.input_range", start, 8, 0.75, **settings)
    quantizer.train()
    return quantizer


EIGHT = paddle.to_tensor([1.0, -8.0])  # 0.75 * 4 + 0.25 * 8 = 5, then 0.75 * 5 + 0.25 * 8 = 5.75


def test_range_to_begin_with() -> None:
    assert observed().range() == 4
    assert observed().limit.shape == [1]


def test_range_moves_by_its_rate_in_training() -> None:
    """Before it rounds: what lies beyond the moved range is clipped to it."""
    quantizer = observed()
    assert quantizer(EIGHT)[1].item() == pytest.approx(-5)
    assert quantizer.range() == 5
    assert quantizer(EIGHT)[1].item() == pytest.approx(-5.75)
    assert quantizer.range() == 5.75


def test_range_shrinks_too() -> None:
    quantizer = observed()
    quantizer(paddle.zeros([2]))
    assert quantizer.range() == 3


@pytest.mark.parametrize("state", ["evaluation", "frozen"])
def test_range_stands_still(state: str) -> None:
    quantizer = observed()
    quantizer.frozen = state == "frozen"
    quantizer.training = state == "frozen"
    assert quantizer(EIGHT)[1].item() == pytest.approx(-4)
    assert quantizer.range() == 4


def test_range_of_every_batch() -> None:
    """In training the batch's own, while the average is kept for evaluation."""
    quantizer = observed(per_batch=True)
    assert quantizer(EIGHT)[1].item() == pytest.approx(-8)
    assert quantizer.range() == 5
    quantizer.eval()
    assert quantizer(EIGHT)[1].item() == pytest.approx(-5)
    assert quantizer.range() == 5


def test_range_is_saved_but_not_trained() -> None:
    quantizer = observed()
    assert list(quantizer.state_dict()) == ["limit"]
    values = paddle.to_tensor([3.0], stop_gradient=False)
    optimizer = paddle.optimizer.Momentum(
        0.5, parameters=[values, *quantizer.parameters()], weight_decay=0.1
    )
    quantizer.frozen = True
    quantizer(values).sum().backward()
    optimizer.step()
    assert quantizer.range() == 4 and values.item() != 3


def test_shared_range_moves_once() -> None:
    """What the source gave, from the same input, without following it again."""
    source = observed()
    shared = SharedRange(source)
    first = source(EIGHT)
    assert shared(EIGHT).tolist() == first.tolist()
    assert source.range() == shared.range() == 5
    assert source.training


def test_shared_range_of_every_batch() -> None:
    """Two convolutions that read one tensor read the same integers, in training as well."""
    source = observed(per_batch=True)
    shared = SharedRange(source)
    first = source(EIGHT)
    assert shared(EIGHT).tolist() == first.tolist()
    assert source.range() == 5


def test_shared_range_has_nothing_to_save() -> None:
    assert not SharedRange(observed()).state_dict()


def test_shared_range_leaves_its_source_training_after_an_error() -> None:
    source = observed()
    with pytest.raises(Exception, match="no tensor"):
        SharedRange(source)(Broken())
    assert source.training


class Broken:
    """Anything that cannot be rounded."""

    def __getattr__(self, name: str) -> None:
        raise RuntimeError("no tensor")


WEIGHT = np.array([[[[0.5]], [[-2.54]]], [[[0.0]], [[0.0]]], [[[1.27]], [[0.014]]]], "float32")


@pytest.mark.parametrize(
    ("per_channel", "ranges", "rounded"),
    [
        (True, [2.54, MIN_RANGE, 1.27], [[0.5, -2.54], [0, 0], [1.27, 0.01]]),
        (False, [2.54], [[0.5, -2.54], [0, 0], [1.28, 0.02]]),
    ],
)
def test_ranges_of_a_weight(
    per_channel: bool, ranges: list[float], rounded: list[list[float]]
) -> None:
    """The second channel is all zeros; 1.27 and 0.014 are 63.5 and 0.7 steps of 2.54 / 127."""
    quantizer = AbsMaxWeight(8, per_channel)
    assert quantizer.ranges(WEIGHT) == pytest.approx(ranges)
    found = quantizer(paddle.to_tensor(WEIGHT)).numpy()
    assert found.shape == WEIGHT.shape
    assert np.allclose(found.reshape(3, 2), rounded, atol=1e-6)
    assert not quantizer.state_dict()


@pytest.mark.parametrize("per_channel", [True, False])
def test_weight_of_zeros(per_channel: bool) -> None:
    quantizer = AbsMaxWeight(8, per_channel)
    zeros = np.zeros((2, 3, 1, 1), "float32")
    assert (quantizer.ranges(zeros) == MIN_RANGE).all()
    assert (quantizer(paddle.to_tensor(zeros)).numpy() == 0).all()


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_ranges_are_those_that_the_weight_is_rounded_with(bits: int, per_channel: bool) -> None:
    """The integers of the scales are the ones that the simulation computes with."""
    weight = np.random.default_rng(bits).normal(size=(4, 3, 3, 3)).astype("float32")
    quantizer = AbsMaxWeight(bits, per_channel)
    ranges = quantizer.ranges(weight)
    steps = ranges.reshape(-1, 1, 1, 1) / (2 ** (bits - 1) - 1)
    simulated = quantizer(paddle.to_tensor(weight)).numpy() / steps
    assert np.allclose(simulated, to_integers(weight, ranges, bits), rtol=1e-5, atol=1e-4)


def test_gradient_of_a_weight_passes_straight_through() -> None:
    for per_channel in (True, False):
        weight = paddle.to_tensor(WEIGHT, stop_gradient=False)
        (AbsMaxWeight(8, per_channel)(weight) * 3).sum().backward()
        assert (weight.grad.numpy() == 3).all()


def test_largest_values() -> None:
    assert absolute_max(paddle.to_tensor([-3.0, 2.0])) == 3
    assert absolute_max(paddle.to_tensor([[3.0], [-2.0]])) == 3
    assert channel_max(paddle.to_tensor(WEIGHT)).numpy() == pytest.approx([2.54, MIN_RANGE, 1.27])


def test_fixed_parameter_has_the_name_that_is_asked_for() -> None:
    """In every model, so that a checkpoint fits; names of layers made later are not moved."""
    with unique_name.guard():
        first = fixed_parameter(paddle.nn.Layer(), "a.range", np.array([1.5, 2.0]))
        second = fixed_parameter(paddle.nn.Layer(), "a.range", np.array([3.0]))
        assert paddle.nn.Conv2D(1, 1, 1).weight.name == "conv2d_0.w_0"
    assert first.name == second.name == "a.range"
    assert first.tolist() == [1.5, 2.0]
    assert first.stop_gradient and not first.trainable

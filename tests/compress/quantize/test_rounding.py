"""Integers of hand-set values, and the gradient that passes by."""

from __future__ import annotations

import numpy as np
import paddle
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from slim_det.compress.quantize.rounding import MIN_RANGE, fake_quantize, fake_quantize_channels
from slim_det.graph.integers import levels, to_integers

# With a range of 127 and 8 bits a step is 1, with 1 and 2 bits too: values are what they become.
# Ties go to the even neighbour, as in the engines.
HAND_SET = [
    (8, 127, [0, 0.4, 0.6, -0.4, -0.6], [0, 0, 1, 0, -1]),
    (8, 127, [0.5, 1.5, 2.5, -0.5, -1.5, -2.5], [0, 2, 2, 0, -2, -2]),
    (8, 127, [126.4, 126.5, 127, 127.4, 128, 1e30], [126, 126, 127, 127, 127, 127]),
    (8, 127, [-126.4, -126.5, -127, -127.6, -128, -1e30], [-126, -126, -127, -127, -127, -127]),
    (2, 1, [0.4, 0.5, 0.6, 1.5, 9, -0.5, -0.6, -9], [0, 0, 1, 1, 1, 0, -1, -1]),
    (
        16,
        32767,
        [32766.4, 32767, 32768, -32766.6, -40000, 0.5],
        [32766, 32767, 32767, -32767, -32767, 0],
    ),
    # An unsigned integer of 8 bits: 0 to 255.
    (9, 255, [0, 0.5, 127.4, 254.6, 255, 256], [0, 0, 127, 255, 255, 255]),
    (8, 254, [1, 3, -5, 254, 300], [0, 2, -2, 127, 127]),
    (3, 0.75, [0.12, 0.13, -0.5, 0.75, 0.9], [0, 1, -2, 3, 3]),
    # Half of the range lies between 63 and 64, whatever the range is.
    (8, 2, [1, -1, 2], [64, -64, 127]),
    (8, 0.3, [0.3, -0.3, 0.15], [127, -127, 64]),
]


@pytest.mark.parametrize(
    ("bits", "limit"), [(2, 1), (3, 3), (4, 7), (8, 127), (9, 255), (16, 32767)]
)
def test_levels(bits: int, limit: int) -> None:
    assert levels(bits) == limit


def test_nothing_to_round() -> None:
    assert to_integers(np.zeros((0, 3)), np.ones(1), 8).shape == (0, 3)
    assert fake_quantize(paddle.zeros([0, 3]), 1.0, 8).shape == [0, 3]
    assert fake_quantize_channels(paddle.zeros([0, 3]), paddle.ones([0]), 8).shape == [0, 3]


@pytest.mark.parametrize(("bits", "limit", "values", "integers"), HAND_SET)
def test_integers_of_hand_set_values(
    bits: int, limit: float, values: list[float], integers: list[int]
) -> None:
    """By the three functions alike; a long tensor goes through other instructions than a short."""
    for repeats in (1, 100):
        array = np.tile(np.array(values, "float32"), repeats)
        truth = np.tile(integers, repeats)
        ranges = np.array([limit], "float32")
        assert to_integers(array, ranges, bits).tolist() == truth.tolist()
        step = limit / (2 ** (bits - 1) - 1)
        rounded = fake_quantize(paddle.to_tensor(array), float(ranges[0]), bits)
        assert np.allclose(rounded.numpy() / step, truth, rtol=1e-5, atol=1e-5)
        row = paddle.to_tensor(array[None])
        rounded = fake_quantize_channels(row, paddle.to_tensor(ranges), bits)
        assert np.allclose(rounded.numpy()[0] / step, truth, rtol=1e-5, atol=1e-5)


def test_a_range_for_every_channel() -> None:
    values = np.array([[1.4, -200], [1.4, -200], [0.014, 0.5]], "float32")
    ranges = np.array([127, 254, 1.27], "float32")
    integers = [[1, -127], [1, -100], [1, 50]]
    assert to_integers(values, ranges, 8).tolist() == integers
    rounded = fake_quantize_channels(paddle.to_tensor(values), paddle.to_tensor(ranges), 8)
    assert np.allclose(rounded.numpy(), [[1, -127], [2, -200], [0.01, 0.5]], rtol=1e-6)


def test_channels_of_a_filter() -> None:
    """[Cout, Cin, kh, kw]: the range is that of the first axis, also where all have one length."""
    values = np.full((2, 2, 2, 2), 1.0, "float32")
    integers = to_integers(values, np.array([127.0, 1.0]), 8)
    assert (integers[0] == 1).all() and (integers[1] == 127).all()
    rounded = fake_quantize_channels(
        paddle.to_tensor(values * 1.3), paddle.to_tensor([127.0, 1.0]), 8
    )
    assert np.allclose(rounded.numpy(), 1)


def test_tensor_of_zeros() -> None:
    """Its range is nothing; it stays zero, and is a number."""
    zeros = paddle.zeros([2, 3])
    assert (fake_quantize(zeros, 0.0, 8).numpy() == 0).all()
    ranges = paddle.full([2], MIN_RANGE)
    assert (fake_quantize_channels(zeros, ranges, 8).numpy() == 0).all()
    assert (to_integers(zeros.numpy(), np.full(2, MIN_RANGE), 8) == 0).all()


def test_zero_is_exactly_zero() -> None:
    assert fake_quantize(paddle.zeros([1]), 0.3, 8).item() == 0


def test_values_are_not_changed_in_place() -> None:
    values = paddle.to_tensor([0.4, 300.0])
    fake_quantize(values, 127.0, 8)
    fake_quantize_channels(values, paddle.to_tensor([127.0, 127.0]), 8)
    assert values.tolist() == pytest.approx([0.4, 300.0])


def test_gradient_passes_straight_through() -> None:
    """Whatever was rounded away or clipped; no gradient reaches the ranges."""
    given_back = [0.25, -3.0, 7.0]
    values = paddle.to_tensor([0.4, -126.5, 300.0], stop_gradient=False)
    (fake_quantize(values, 127.0, 8) * paddle.to_tensor(given_back)).sum().backward()
    assert values.grad.tolist() == given_back
    rows = paddle.to_tensor([[0.4], [-126.5], [300.0]], stop_gradient=False)
    ranges = paddle.to_tensor([127.0, 1.0, 254.0], stop_gradient=False)
    weights = paddle.to_tensor([[g] for g in given_back])
    (fake_quantize_channels(rows, ranges, 8) * weights).sum().backward()
    assert rows.grad.flatten().tolist() == given_back
    assert ranges.grad is None or not ranges.grad.numpy().any()


FILTERS = hnp.arrays(np.float32, (3, 4), elements=st.floats(-4, 4, width=32, allow_subnormal=False))


@given(
    weight=FILTERS,
    powers=hnp.arrays(np.int64, 3, elements=st.integers(-8, 8)),
    bits=st.integers(2, 16),
)
@settings(deadline=None, max_examples=100)
def test_rounding_of_channels_commutes_with_folding(
    weight: np.ndarray, powers: np.ndarray, bits: int
) -> None:
    """Integers of a scaled channel are those of the channel, or their negatives.

    Powers of two scale without any error, so that ties stay ties.
    """
    ranges = np.abs(weight).max(axis=1)
    assume((ranges > 1e-3).all())
    signs = np.where(powers % 2, -1.0, 1.0)
    factors = signs * 2.0**powers
    folded = to_integers(weight * factors[:, None], ranges * np.abs(factors), bits)
    assert np.array_equal(folded, to_integers(weight, ranges, bits) * signs[:, None])


@given(weight=FILTERS, limit=st.floats(0.015625, 8, width=32), bits=st.integers(2, 16))
@settings(deadline=None, max_examples=100)
def test_what_is_rounded_stays_as_it_is(weight: np.ndarray, limit: float, bits: int) -> None:
    """Rounding twice is rounding once; nothing moves by more than half a step within the range."""
    step = limit / levels(bits)
    once = fake_quantize(paddle.to_tensor(weight), limit, bits)
    assert np.abs(once.numpy()).max() <= limit * (1 + 1e-6)
    inside = np.abs(weight) <= limit
    assert (np.abs(once.numpy() - weight)[inside] <= step / 2 + 1e-6).all()
    assert np.allclose(fake_quantize(once, limit, bits).numpy(), once.numpy(), atol=step * 1e-2)

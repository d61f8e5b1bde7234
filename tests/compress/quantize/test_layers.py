"""Convolutions whose simulated output, gradient and deployed integers are worked out on paper."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from paddle.nn import BatchNorm2D, Conv2D

from slim_det.compress.quantize.layers import QuantConv2D, quantize_convolution, release_convolution
from slim_det.compress.quantize.quantizers import AbsMaxWeight, ObservedRange
from slim_det.graph.integers import levels, to_integers
from tests.compress.quantize.nets import state_of
from tests.support import assert_same_sums, trace_plain


def quantized(
    weight: Any, *, limit: float = 127, bits: int = 8, per_channel: bool = True, **more: Any
) -> QuantConv2D:
    """A quantized convolution of this weight in evaluation mode; inputs of 8 bits in ``limit``."""
    norm = more.pop("norm", None)
    bias = more.pop("bias", None)
    weight = np.array(weight, "float32")
    channels = weight.shape[1] * more.get("groups", 1)
    more["bias_attr"] = None if bias else False
    layer = Conv2D(channels, weight.shape[0], weight.shape[2], **more)
    layer.weight.set_value(weight)
    if bias:
        layer.bias.set_value(np.array(bias, "float32"))
    activation = ObservedRange(f"{layer.weight.name}.input_range", limit, 8)
    quantize_convolution(layer, activation, AbsMaxWeight(bits, per_channel), norm)
    layer.eval()
    return layer


def normed(gamma: list[float]) -> BatchNorm2D:
    """Batch norm that multiplies each channel with half of ``gamma``: 1 / sqrt(3 + 1)."""
    norm = BatchNorm2D(len(gamma), epsilon=1.0)
    norm.weight.set_value(np.array(gamma, "float32"))
    norm._variance.set_value(np.full(len(gamma), 3, "float32"))
    norm.eval()
    return norm


def filters(rows: list[list[float]]) -> np.ndarray:
    """Filters of 1x1."""
    return np.array(rows, "float32")[:, :, None, None]


def test_no_image() -> None:
    assert quantized(filters([[1.0]]))(paddle.zeros([0, 1, 2, 2])).shape == [0, 1, 2, 2]


def test_integers_change_nothing() -> None:
    """An input and a weight of integers within their ranges come out exactly."""
    layer = quantized(filters([[3.0, -127.0]]))
    x = paddle.to_tensor([5.0, -127.0]).reshape([1, 2, 1, 1])
    assert layer(x).item() == 3 * 5 + 127 * 127


def test_1x1_on_paper() -> None:
    """A step is 1 of the input and 2.54 / 127 = 0.02 of the weight.

    1.4 is 1 and -2.6 is -3; 0.409 is 20.45, so 20, steps: 0.4 * 1 + 2.54 * -3 + 0.5 = -6.72.
    """
    layer = quantized(filters([[0.409, 2.54]]), bias=[0.5])
    x = paddle.to_tensor([1.4, -2.6]).reshape([1, 2, 1, 1])
    assert_same_sums(layer(x).item(), -6.72)


def test_3x3_on_paper() -> None:
    """Of two bits, a weight is -1, 0 or 1; the tie 0.5 is 0.

    The filter is [[1, 0, -1], [0, 1, -1], [0, 1, -1]]; the image [[1, 3], [-4, 127]] with zeros
    around it, of [[1.4, 2.6], [-3.5, 130]].
    """
    weight = [[[[0.6, 0.4, -1.0], [0.2, 1.0, -0.7], [0.5, 1.0, -0.51]]]]
    layer = quantized(weight, bits=2, padding=1)
    out = layer(paddle.to_tensor([[[[1.4, 2.6], [-3.5, 130.0]]]]))
    assert out.tolist() == [[[[1 - 3 - 4 - 127, 3 + 127], [-4 - 127 - 3, 1 + 127]]]]


def test_stride_groups_and_dilation_are_kept() -> None:
    """Integers again, so the float convolution is the truth."""
    rng = np.random.default_rng(0)
    weight = rng.integers(-127, 128, (4, 1, 3, 3))
    weight[:, 0, 0, 0] = 127
    more = {"stride": 2, "padding": [2, 1], "dilation": 2, "groups": 2}
    layer = quantized(weight, **more)
    x = paddle.to_tensor(rng.integers(-127, 128, (2, 2, 9, 8)).astype("float32"))
    truth = paddle.nn.functional.conv2d(x, layer.weight, **more)
    assert np.array_equal(layer(x).numpy(), truth.numpy())


def test_gradients_on_paper() -> None:
    """Those of a convolution of the rounded tensors: 0.4 is the weight, 1 and 127 the input."""
    layer = quantized(filters([[0.409, 2.54]]))
    x = paddle.to_tensor([1.4, 300.0]).reshape([1, 2, 1, 1])
    x.stop_gradient = False
    (layer(x) * 10).backward()
    assert x.grad.flatten().tolist() == pytest.approx([4.0, 25.4])
    assert layer.weight.grad.flatten().tolist() == [10, 1270]


# Folded: [2, 0.6], [-0.4, 1.2], [0, 0], with the range 2 of which 3 bits make 3 steps.
WEIGHT = filters([[1.0, 0.3], [0.8, -2.4], [5.0, 7.0]])
GAMMA = [4.0, -1.0, 0.0]


def test_one_range_with_batch_norm() -> None:
    """The weight is rounded as it will be folded: a negative gamma, and one that is nothing."""
    layer = quantized(WEIGHT, bits=3, per_channel=False, norm=normed(GAMMA))
    assert layer.folded_weight().reshape(3, 2) == pytest.approx(
        np.array([[2, 0.6], [-0.4, 1.2], [0, 0]]), abs=1e-6
    )
    assert layer.weight_ranges() == pytest.approx([2])
    assert deployed(layer, 3).reshape(3, 2).tolist() == [[3, 1], [-1, 2], [0, 0]]
    simulated = layer.rounded_weight().numpy().reshape(3, 2)
    assert simulated == pytest.approx(np.array([[1, 1 / 3], [4 / 3, -8 / 3], [0, 0]]), rel=1e-6)


def test_ranges_of_channels_with_batch_norm() -> None:
    """[1, 0.9] of [1, 0.3] as of [2, 0.6]; the ranges are the folded ones, and never negative."""
    layer = quantized(WEIGHT, bits=3, norm=normed(GAMMA))
    ranges = layer.weight_ranges()
    assert ranges[:2] == pytest.approx([2, 1.2]) and 0 < ranges[2] <= 1e-8
    assert deployed(layer, 3).reshape(3, 2).tolist() == [[3, 1], [-1, 3], [0, 0]]
    simulated = layer.rounded_weight().numpy().reshape(3, 2)
    assert simulated[:2] == pytest.approx(np.array([[1, 1 / 3], [0.8, -2.4]]), rel=1e-6)


def test_without_batch_norm() -> None:
    """One range for the tensor: 7, of which 3 bits make 3 steps of 2.33."""
    layer = quantized(WEIGHT, bits=3, per_channel=False)
    assert layer.norm is None
    assert np.array_equal(layer.folded_weight(), WEIGHT)
    assert layer.weight_ranges() == pytest.approx([7])
    assert deployed(layer, 3).reshape(3, 2).tolist() == [[0, 0], [0, -1], [2, 3]]


def deployed(layer: QuantConv2D, bits: int) -> np.ndarray:
    """The integers that the export writes."""
    return to_integers(layer.folded_weight(), layer.weight_ranges(), bits)


@pytest.mark.parametrize("per_channel", [True, False])
def test_simulation_is_what_the_deployed_integers_compute(per_channel: bool) -> None:
    """Convolution and batch norm, against sums of products of integers, times both steps."""
    rng = np.random.default_rng(1)
    norm = normed([4.0, -1.0, 0.0, 0.7])
    norm.bias.set_value(np.array([0.5, -1, 2, 0], "float32"))
    norm._mean.set_value(np.array([1, 0.25, -3, 2], "float32"))
    weight = filters(rng.normal(size=(4, 3)))
    layer = quantized(weight, limit=2.0, per_channel=per_channel, norm=norm)
    x = rng.normal(size=(5, 3)).astype("float32")
    found = norm(layer(paddle.to_tensor(x[:, :, None, None]))).numpy()[:, :, 0, 0]

    sums = np.rint(np.clip(x / 2 * 127, -127, 127)) @ deployed(layer, 8).reshape(4, 3).T
    shift = np.array([0.5, -1, 2, 0]) - np.array([1, 0.25, -3, 2]) * [2, -0.5, 0, 0.35]
    truth = sums * (2 / 127) * layer.weight_ranges() / 127 + shift
    assert_same_sums(found, truth)


@given(
    weight=hnp.arrays(np.float32, (3, 4, 1, 1), elements=st.floats(0.125, 4, width=32)),
    gamma=st.lists(
        st.floats(-8, 8, width=32).filter(lambda g: abs(g) > 0.01), min_size=3, max_size=3
    ),
    bits=st.integers(2, 8),
    per_channel=st.booleans(),
)
@settings(deadline=None, max_examples=60)
def test_simulated_integers_are_the_deployed_ones(
    weight: np.ndarray, gamma: list[float], bits: int, per_channel: bool
) -> None:
    """Rounded before folding (channels) or after: the same integers, but for ties."""
    norm = normed(gamma)
    layer = quantized(weight, bits=bits, per_channel=per_channel, norm=norm)
    factor = np.array(gamma).reshape(-1, 1, 1, 1) / 2
    ranges = layer.weight_ranges().reshape(-1, 1, 1, 1)
    simulated = layer.rounded_weight().numpy() * factor / ranges * levels(bits)
    assert np.allclose(simulated, np.rint(simulated), atol=1e-3)
    places = np.abs(weight * factor / ranges * levels(bits))
    tie = np.abs(places - np.floor(places) - 0.5) < 1e-3
    assert np.array_equal(np.rint(simulated)[~tie], deployed(layer, bits)[~tie])


def test_gradient_of_a_weight_that_is_rounded_as_folded() -> None:
    """It passes straight through; none reaches batch norm through the rounding."""
    norm = normed(GAMMA)
    layer = quantized(WEIGHT, bits=3, per_channel=False, norm=norm)
    layer.rounded_weight().sum().backward()
    assert layer.weight.grad.numpy() == pytest.approx(1, rel=1e-6)
    assert norm.weight.grad is None


def test_layer_stays_the_same_object() -> None:
    """Its parameters keep their names; only the range of the input is new."""
    layer = Conv2D(2, 2, 1)
    names, weight = list(layer.state_dict()), layer.weight
    quantize_convolution(layer, ObservedRange("r", 2, 8), AbsMaxWeight(8, True), normed([1, 1]))
    assert isinstance(layer, QuantConv2D) and layer.weight is weight
    assert list(layer.state_dict()) == [*names, "activation.limit"]


def test_hooks_stay() -> None:
    layer, seen = Conv2D(1, 1, 1), []
    layer.register_forward_post_hook(lambda *args: seen.append(args[0]))
    quantize_convolution(layer, ObservedRange("r", 2, 8), AbsMaxWeight(8, True), None)
    layer(paddle.ones([1, 1, 1, 1]))
    assert seen == [layer]


def test_released_layer_is_the_float_one_bit_for_bit() -> None:
    layer = Conv2D(3, 4, 3, padding=1)
    x = paddle.to_tensor(np.random.default_rng(0).normal(size=(1, 3, 5, 5)).astype("float32"))
    state, out = state_of(layer), layer(x).numpy()
    attributes = set(vars(layer))
    quantize_convolution(layer, ObservedRange("r", 2, 2), AbsMaxWeight(2, False), normed([1] * 4))
    assert not np.allclose(layer(x).numpy(), out)
    release_convolution(layer)
    assert type(layer) is Conv2D and set(vars(layer)) == attributes
    assert not layer.sublayers()
    assert state_of(layer).keys() == state.keys()
    assert np.array_equal(layer(x).numpy(), out)


def test_traced_layer_is_a_float_convolution() -> None:
    layer = quantized(filters([[0.409, 2.54]]))
    assert [op.type for op in trace_plain(layer, 1, 2, 4, 4).ops] == ["conv2d"]
    assert_same_sums(layer(paddle.ones([1, 2, 1, 1])).item(), 2.94)

"""Integers against floats, layer by layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest

from slim_det.compress.images import calibration_images
from slim_det.compress.quantize.model import quantize_model
from slim_det.compress.quantize.quantization_error import (
    QuantizationError,
    layer_quantization_errors,
    only_quantized,
)
from slim_det.compress.quantize.record import QuantLayer, QuantRecord
from slim_det.compress.quantize.settings import QuantSettings
from tests.compress.quantize.small_nets import SmallNet, small_net, state

LAYERS = [QuantLayer("first", "norm"), QuantLayer("left"), QuantLayer("right", shares="left")]
RANGES = {"first": 3.0, "left": 5.0}


def quantized(bits: int = 8, net: SmallNet | None = None) -> SmallNet:
    net = net or small_net()
    settings = QuantSettings(weight_bits=bits, activation_bits=bits)
    quantize_model(net, QuantRecord(settings, LAYERS, {}), RANGES)
    return net


def image() -> dict[str, paddle.Tensor]:
    rng = np.random.default_rng(0)
    return {"image": paddle.to_tensor(rng.normal(size=(1, 3, 8, 8)).astype("float32"))}


def test_figures_by_hand() -> None:
    some = QuantizationError(signal=200.0, noise=2.0, difference=np.array([4.0, -8.0]), count=4)
    assert some.sqnr_db == pytest.approx(20.0)
    assert some.mean_difference.tolist() == [1.0, -2.0]
    nothing = QuantizationError(0.0, 0.0, np.zeros(2), 0)
    assert nothing.sqnr_db == float("inf") and nothing.mean_difference.tolist() == [0.0, 0.0]
    assert QuantizationError(0.0, 1.0, np.zeros(1), 1).sqnr_db == -float("inf")


def test_a_model_without_integers_is_the_float_model() -> None:
    expected = small_net()(image())["bbox"].numpy()
    net = quantized()
    rounded = net(image())["bbox"].numpy()
    assert not np.array_equal(rounded, expected)
    with only_quantized(net, ()):
        assert np.array_equal(net(image())["bbox"].numpy(), expected)
    assert np.array_equal(net(image())["bbox"].numpy(), rounded)
    with only_quantized(net, ("first", "left", "right")):
        assert np.array_equal(net(image())["bbox"].numpy(), rounded)


def test_one_layer_with_integers() -> None:
    net = quantized()
    hidden: list[np.ndarray] = []
    handle = net.left.register_forward_pre_hook(lambda _, x: hidden.append(x[0].numpy()))
    with only_quantized(net, ("left",)):
        net(image())
    small_net_hidden = small_net()
    small_net_hidden.left.register_forward_pre_hook(lambda _, x: hidden.append(x[0].numpy()))
    small_net_hidden(image())
    handle.remove()
    assert np.array_equal(hidden[0], hidden[1])  # what comes before is float


def test_deviations_are_those_of_each_layer_alone(tiny_cfg: Any) -> None:
    net, in_float = quantized(4), small_net()
    before = state(net)
    images = calibration_images(3)[1]
    found = layer_quantization_errors(net, tiny_cfg, images)
    assert list(found) == ["first", "left", "right"]
    signal = noise = 0.0
    difference = np.zeros(2)
    for x in map(paddle.to_tensor, net.inputs_seen):
        hidden = paddle.nn.functional.relu(in_float.norm(in_float.first(x)))
        exact, rounded = in_float.right(hidden).numpy(), net.right(hidden).numpy()
        signal += np.square(exact, dtype=np.float64).sum()
        noise += np.square(exact - rounded, dtype=np.float64).sum()
        difference += (exact - rounded).sum((0, 2, 3), dtype=np.float64)
    assert found["right"].signal == pytest.approx(signal, rel=1e-5)
    assert found["right"].noise == pytest.approx(noise, rel=1e-5)
    assert found["right"].difference == pytest.approx(difference, rel=1e-3, abs=1e-2)
    assert found["right"].count == 3 * 96 * 96
    after = state(net)
    assert all(np.array_equal(before[k], after[k]) for k in before)
    assert not net.first._forward_post_hooks


def test_more_bits_less_noise(tiny_cfg: Any) -> None:
    """Each bit halves the step: 6 dB."""
    images = calibration_images(1)[1]
    low, high = (
        layer_quantization_errors(quantized(bits), tiny_cfg, images)["first"].sqnr_db
        for bits in (6, 10)
    )
    assert high - low == pytest.approx(4 * 6.02, abs=2.0)

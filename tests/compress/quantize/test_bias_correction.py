"""After the correction no channel has a mean error."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import pytest

from slim_det.compress.images import calibration_images
from slim_det.compress.quantize.bias_correction import correct_biases
from slim_det.compress.quantize.model import quantized_layers
from slim_det.compress.quantize.quantization_error import (
    QuantizationError,
    layer_quantization_errors,
    only_quantized,
)
from tests.compress.quantize.small_nets import small_net, state
from tests.compress.quantize.test_quantization_error import quantized


def lacking(values: list[float]) -> QuantizationError:
    return QuantizationError(1.0, 1.0, np.array(values), 2)


def test_values_by_hand() -> None:
    net = quantized()
    before = state(net)
    some = {
        "first": lacking([2.0, -4.0, 0.0, 6.0]),
        "left": lacking([1.0, -1.0]),
        "right": lacking([8.0, 8.0]),
    }
    assert correct_biases(net, some) == ["right"]  # it has neither batch norm nor bias
    after = state(net)
    changed = {k: after[k] - before[k] for k in before if not np.array_equal(before[k], after[k])}
    assert sorted(changed) == ["left.bias", "norm._mean"]
    assert changed["norm._mean"] == pytest.approx([-1.0, 2.0, 0.0, -3.0], abs=1e-6)
    assert changed["left.bias"] == pytest.approx([0.5, -0.5], abs=1e-6)


def test_no_difference_changes_nothing() -> None:
    net = quantized()
    before = state(net)
    zeros = {n: lacking([0.0] * x.weight.shape[0]) for n, x in quantized_layers(net).items()}
    correct_biases(net, zeros)
    after = state(net)
    assert all(np.array_equal(before[k], after[k]) for k in before)


def test_the_mean_error_behind_batch_norm_is_gone(tiny_cfg: Any) -> None:
    """3 bits leave a mean error; the corrected layer has none on the images of the correction."""
    net, in_float = quantized(3), small_net()
    images = calibration_images(3)[1]
    quantization_errors = layer_quantization_errors(net, tiny_cfg, images)
    seen = [paddle.to_tensor(x) for x in net.inputs_seen]

    def mean_error() -> np.ndarray:
        with only_quantized(net, ("first",)):
            errors = [in_float.norm(in_float.first(x)) - net.norm(net.first(x)) for x in seen]
        return np.mean([e.numpy().mean((0, 2, 3)) for e in errors], 0)

    before = np.abs(mean_error()).max()
    correct_biases(net, quantization_errors)
    after = np.abs(mean_error()).max()
    assert before > 1e-2
    assert after < 1e-4

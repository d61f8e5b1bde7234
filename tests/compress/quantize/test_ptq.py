"""From float weights and images to a quantized model and its record."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from slim_det.compress.quantize.model import quantized_layers, ranges_of
from slim_det.compress.quantize.observers import PtqOptions
from slim_det.compress.quantize.ptq import run_ptq
from slim_det.compress.quantize.record import record_of
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.core.errors import ConfigError, DataError, QuantError
from tests.compress.quantize.small_nets import small_net, state


def test_ranges_are_those_of_the_images(tiny_cfg: Any) -> None:
    net = small_net()
    before = state(net)
    result = run_ptq(net, tiny_cfg, QuantSettings(), PtqOptions("abs_max", 4))
    assert len(result.images) == 4
    images = net.inputs_seen[:4]
    scales = ranges_of(net)
    largest = max(float(np.abs(x).max()) for x in images)
    assert scales["first.weight"].input_range == largest
    assert scales["left.weight"].input_range == scales["right.weight"].input_range
    assert list(quantized_layers(net)) == ["first", "left", "right"]
    after = state(net)
    assert all(np.array_equal(before[k], after[k]) for k in before)  # weights stay as they were


def test_the_record_says_where_it_is_from(tiny_cfg: Any) -> None:
    net = small_net()
    settings = QuantSettings(skip=("right",))
    result = run_ptq(net, tiny_cfg, settings, PtqOptions("hist", 2, 0.9999, True))
    record = record_of(net)
    assert record is result.record
    assert record.origin == {
        "method": "post",
        "observer": "hist",
        "images": 2,
        "source": "TrainDataset",
        "bias_correction": True,
        "percent": 0.9999,
    }
    assert list(record.kept_float) == ["right"] and record.settings == settings


def test_bias_correction_is_done_when_asked(tiny_cfg: Any) -> None:
    plain, corrected = small_net(), small_net()
    run_ptq(plain, tiny_cfg, QuantSettings(), PtqOptions("abs_max", 2))
    run_ptq(corrected, tiny_cfg, QuantSettings(), PtqOptions("abs_max", 2, bias_correction=True))
    left, right = state(plain), state(corrected)
    changed = [name for name in left if not np.array_equal(left[name], right[name])]
    assert sorted(changed) == ["left.bias", "norm._mean"]


def test_the_same_run_twice_gives_the_same(tiny_cfg: Any) -> None:
    first, second = small_net(), small_net()
    for net in (first, second):
        run_ptq(net, tiny_cfg, QuantSettings(), PtqOptions("mse", 3))
    left, right = state(first), state(second)
    assert left.keys() == right.keys()
    assert all(np.array_equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        (PtqOptions("hst"), ConfigError, "unknown observer 'hst'; did you mean 'hist'"),
        (PtqOptions(images=0), ConfigError, "images: 0 is not valid"),
        (PtqOptions(images=17), DataError, "TrainDataset has 16 images, 17 are asked for"),
        (PtqOptions(percent=0.0), ConfigError, "percent: 0.0 is not valid"),
    ],
)
def test_options_that_cannot_be(
    tiny_cfg: Any, options: PtqOptions, error: type[Exception], said: str
) -> None:
    net = small_net()
    with pytest.raises(error, match=said):
        run_ptq(net, tiny_cfg, QuantSettings(), options)
    assert record_of(net) is None


def test_names_to_skip_that_match_nothing(tiny_cfg: Any) -> None:
    net = small_net()
    with pytest.raises(ConfigError, match="skip: no layer matches 'neck"):
        run_ptq(net, tiny_cfg, QuantSettings(skip=("neck.*",)), PtqOptions(images=1))
    assert record_of(net) is None


def test_a_model_that_is_quantized_already(tiny_cfg: Any) -> None:
    net = small_net()
    run_ptq(net, tiny_cfg, QuantSettings(), PtqOptions("avg", 1))
    with pytest.raises(QuantError, match="quantized already.*expected float weights"):
        run_ptq(net, tiny_cfg, QuantSettings(), PtqOptions("avg", 1))

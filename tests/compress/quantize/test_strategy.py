"""The `QAT` and `PTQ` of a slim file: what they accept, and what a model becomes."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from ppdet.core.workspace import global_config

from slim_det.compress.quantize.model import quantized_layers, ranges_of
from slim_det.compress.quantize.observers import PtqOptions
from slim_det.compress.quantize.record import record_of
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.compress.quantize.strategy import (
    PTQ,
    QAT,
    kept_float_lines,
    settings_that_differ,
)
from slim_det.compress.strategy import Context
from slim_det.core.errors import ConfigError, DataError, QuantError, SlimDetError
from slim_det.training import session
from slim_det.training.config import load_config


def context() -> Context:
    return Context(global_config, (96, 96))


PADDLEDETECTION = {
    "weight_quantize_type": "channel_wise_abs_max",
    "activation_quantize_type": "moving_average_abs_max",
    "weight_bits": 8,
    "activation_bits": 8,
    "dtype": "int8",
    "window_size": 10000,
    "moving_rate": 0.9,
    "quantizable_layer_type": ["Conv2D", "Linear"],
}


@pytest.fixture
def model(fresh_config: Any, tiny: Path) -> paddle.nn.Layer:
    """The tiny detector, untrained; its configuration is ppdet's."""
    cfg = load_config(tiny)
    paddle.seed(2)
    return session.build_model(cfg)


def refused(kind: type[SlimDetError], call: Any, **settings: Any) -> str:
    with pytest.raises(kind) as caught:
        call(**settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_keys_of_paddledetection() -> None:
    found = QAT(quant_config=PADDLEDETECTION, print_model=True)
    assert found.settings == QuantSettings(layer_types=("Conv2D", "Linear"))
    assert found.print_model and found.calibration_images == 16
    assert found.schedule == {"freeze_epoch": None, "freeze_bn_epoch": None}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"calibration_images": 0}, "QAT.calibration_images: 0 is not valid; expected a whole"),
        ({"calibration_images": True}, "QAT.calibration_images: True"),
        ({"freeze_epoch": -1}, "QAT.freeze_epoch: -1 is not valid; expected a whole number >= 0"),
        ({"freeze_bn_epoch": 1.5}, "QAT.freeze_bn_epoch: 1.5"),
        ({"quant_config": {"weight_bit": 8}}, "'weight_bit'; did you mean 'weight_bits'?"),
    ],
)
def test_settings_of_qat_that_are_wrong(settings: dict[str, Any], said: str) -> None:
    assert said in refused(ConfigError, QAT, **settings)


def test_ranges_start_from_training_images(
    model: paddle.nn.Layer, caplog: pytest.LogCaptureFixture
) -> None:
    """Every input range is of the calibration; the model is the same object, in the same mode."""
    before = {name: p.numpy().copy() for name, p in model.named_parameters()}
    with caplog.at_level(logging.INFO, "slim_det"):
        qat = QAT(print_model=True, calibration_images=2, freeze_epoch=3)
        assert qat(model, context()) is model
    record = record_of(model)
    assert record.origin == {
        "method": "aware",
        "observer": "moving_average",
        "images": 2,
        "freeze_epoch": 3,
        "freeze_bn_epoch": None,
    }
    assert len(record.layers) > 40 and len(record.kept_float) == 3
    ranges = [scales.input_range for scales in ranges_of(model).values()]
    assert min(ranges) > 0.0 and 1.0 not in ranges and len(set(ranges)) > 40
    after = dict(model.named_parameters())
    assert all(np.array_equal(value, after[name].numpy()) for name, value in before.items())
    assert not model.training and not any(x.training for x in model.sublayers())
    said = [r.getMessage() for r in caplog.records if r.name == "slim_det"]
    assert any(line.startswith(f"{len(record.layers)} layers simulate int8") for line in said)
    assert sum("yolo_head.yolo_output.0, " in line for line in said) == 1
    assert [("QuantConv2D" in line) for line in said if "YOLOv3(" in line] == [False, True]
    assert "quantized already" in refused(QuantError, QAT(), model=model, context=context())


def test_a_learned_range_starts_at_the_largest_value(model: paddle.nn.Layer) -> None:
    config = {"activation_preprocess_type": "PACT"}
    QAT(config, calibration_images=1)(model, context())
    assert record_of(model).origin["observer"] == "abs_max"
    layers = quantized_layers(model).values()
    assert {type(x.activation).__name__ for x in layers} == {"LearnedClip", "SharedRange"}


def test_what_cannot_be_quantized_stays_as_it_was(model: paddle.nn.Layer) -> None:
    """More images than there are, a name that matches nothing."""
    names = set(model.state_dict())
    given = {"model": model, "context": context()}
    assert "99 are asked for (QAT.calibration_images); expected at most 16" in refused(
        DataError, QAT(calibration_images=99), **given
    )
    assert "skip" in refused(ConfigError, QAT({"skip": ["nek.*"]}), **given)
    assert set(model.state_dict()) == names and record_of(model) is None


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({}, PtqOptions(images=20)),
        ({"observer": "mse", "images": 7}, PtqOptions("mse", 7)),
        ({"ptq_config": {}}, PtqOptions("kl", 20)),
        (
            {"ptq_config": {"activation_quantizer": "AbsmaxQuantizer"}, "quant_batch_num": 3},
            PtqOptions("abs_max", 6),
        ),
        (
            {
                "ptq_config": {
                    "activation_quantizer": "HistQuantizer",
                    "upsample_bins": 127,
                    "hist_percent": 0.999,
                },
                "bias_correction": True,
            },
            PtqOptions("hist", 20, 0.999, True),
        ),
        (
            {"ptq_config": {"hist_percent": 0.9}, "observer": "hist", "percent": 0.99},
            PtqOptions("hist", 20, 0.99),
        ),
    ],
)
def test_options_of_ptq(settings: dict[str, Any], options: PtqOptions) -> None:
    """Batches are of two images here; what is said in our own keys wins."""
    assert PTQ(**settings).options(batch_size=2) == options


def test_types_of_ptq() -> None:
    assert PTQ().settings == QuantSettings()
    config = {"weight_quantizer": "AbsmaxQuantizer"}
    assert PTQ(config).settings.weight_type == "abs_max"
    own = {"weight_quantize_type": "channel_wise_abs_max", "skip": "neck.*"}
    found = PTQ(config, quant_config=own).settings
    assert (found.weight_type, found.skip) == ("channel_wise_abs_max", ("neck.*",))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"observer": "ms"}, "PTQ.observer: unknown observer 'ms'"),
        ({"images": 0}, "PTQ.images: 0 is not valid"),
        ({"percent": 2}, "PTQ.percent: 2 is not valid"),
        ({"quant_batch_num": 0}, "PTQ.quant_batch_num: 0 is not valid"),
        ({"bias_correction": 1}, "PTQ.bias_correction: 1 is not valid"),
        ({"ptq_config": 3}, "PTQ.ptq_config: expected a mapping"),
        ({"ptq_config": {"bin": 3}}, "PTQ.ptq_config: unknown key 'bin'; did you mean 'bins'?"),
        (
            {"ptq_config": {"activation_quantizer": "HistQuantiser"}},
            "activation_quantizer: unknown quantizer 'HistQuantiser'; did you mean 'HistQuantizer'",
        ),
        ({"ptq_config": {"weight_quantizer": None}}, "unknown quantizer None"),
        ({"quant_config": {"activation_preprocess_type": "PACT"}}, "learned in training only"),
        ({"quant_config": [1]}, "PTQ.quant_config: expected a mapping"),
    ],
)
def test_settings_of_ptq_that_are_wrong(settings: dict[str, Any], said: str) -> None:
    assert said in refused(ConfigError, PTQ, **settings)


def test_ptq_calibrates(model: paddle.nn.Layer) -> None:
    """Applied by itself it is a strategy like any other; the model stays the same object."""
    assert PTQ(observer="abs_max", images=2)(model, context()) is model
    record = record_of(model)
    assert (record.origin["method"], record.origin["images"]) == ("post", 2)
    ranges = [scales.input_range for scales in ranges_of(model).values()]
    assert len(ranges) == len(record.layers) > 40 and min(ranges) > 0.0
    assert "quantized already" in refused(QuantError, PTQ(), model=model, context=context())


def test_kept_float_lines() -> None:
    assert kept_float_lines({}) == []
    kept = {**{f"a{i}": "one" for i in range(6)}, "b": "two"}
    assert kept_float_lines(kept) == [
        "layers in float: 6 (one): a0, a1, a2, a3, ... (2 more)",
        "layers in float: 1 (two): b",
    ]


def test_settings_that_differ() -> None:
    assert settings_that_differ(QuantSettings(), QuantSettings()) == []
    assert settings_that_differ(QuantSettings(weight_bits=4), QuantSettings(skip=("a",))) == [
        "weight_bits is 4 in the weights, 8 is asked for",
        "skip is () in the weights, ('a',) is asked for",
    ]

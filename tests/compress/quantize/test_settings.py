"""Keys of PaddleDetection's quant_config: every one, its valid values, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slim_det.compress.quantize.settings import QuantSettings, read_quant_config, settings_from_dict
from slim_det.core.errors import ConfigError

# configs/slim/quant/yolov3_mobilenet_v1_qat.yml of PaddleDetection 2.6.
SHIPPED = {
    "weight_preprocess_type": None,
    "activation_preprocess_type": "PACT",
    "weight_quantize_type": "channel_wise_abs_max",
    "activation_quantize_type": "moving_average_abs_max",
    "weight_bits": 8,
    "activation_bits": 8,
    "dtype": "int8",
    "window_size": 10000,
    "moving_rate": 0.9,
    "quantizable_layer_type": ["Conv2D", "Linear"],
}


@pytest.mark.parametrize("empty", [None, {}])
def test_nothing_asked_for(empty: Any) -> None:
    found = read_quant_config(empty)
    assert found.as_dict() == {
        "weight_type": "channel_wise_abs_max",
        "activation_type": "moving_average_abs_max",
        "weight_bits": 8,
        "activation_bits": 8,
        "moving_rate": 0.9,
        "activation_preprocess": None,
        "weight_preprocess": None,
        "unsigned_inputs": True,
        "layer_types": ["Conv2D"],
        "skip": [],
    }


def test_file_of_paddledetection() -> None:
    found = read_quant_config(SHIPPED)
    assert found == QuantSettings(activation_preprocess="PACT", layer_types=("Conv2D", "Linear"))


@pytest.mark.parametrize(
    ("key", "value", "field", "read"),
    [
        ("weight_quantize_type", "abs_max", "weight_type", "abs_max"),
        ("activation_quantize_type", "abs_max", "activation_type", "abs_max"),
        ("weight_bits", 2, "weight_bits", 2),
        ("weight_bits", 16, "weight_bits", 16),
        ("activation_bits", 2, "activation_bits", 2),
        ("activation_bits", 16, "activation_bits", 16),
        ("moving_rate", 0, "moving_rate", 0.0),
        ("moving_rate", 0.999, "moving_rate", 0.999),
        ("activation_preprocess_type", "PACT", "activation_preprocess", "PACT"),
        ("activation_preprocess_type", "LSQ", "activation_preprocess", "LSQ"),
        ("activation_preprocess_type", None, "activation_preprocess", None),
        ("weight_preprocess_type", "LSQ", "weight_preprocess", "LSQ"),
        ("weight_preprocess_type", None, "weight_preprocess", None),
        ("unsigned_inputs", False, "unsigned_inputs", False),
        ("quantizable_layer_type", ["Linear", "Conv2D"], "layer_types", ("Linear", "Conv2D")),
        ("quantizable_layer_type", "Conv2D", "layer_types", ("Conv2D",)),
        ("skip", ["backbone.*", "neck.a"], "skip", ("backbone.*", "neck.a")),
        ("skip", "backbone.*", "skip", ("backbone.*",)),
        ("skip", [], "skip", ()),
        ("skip", None, "skip", ()),
    ],
)
def test_key_sets_its_own_field_only(key: str, value: Any, field: str, read: Any) -> None:
    found = read_quant_config({key: value})
    assert getattr(found, field) == read
    assert found == QuantSettings(**{field: read})


@pytest.mark.parametrize("key", ["window_size", "name", "onnx_format", "dtype"])
def test_key_without_effect(key: str) -> None:
    assert read_quant_config({key: "int8"}) == QuantSettings()


@pytest.mark.parametrize(
    ("key", "value", "phrase"),
    [
        *(
            (f"{kind}_bits", bits, f"{bits!r} is not valid; expected a whole number of bits")
            for kind in ("weight", "activation")
            for bits in (1, 17, 0, -8, True, "8", 8.0, None, [8])
        ),
        *(
            ("moving_rate", rate, f"{rate!r} is not valid; expected a number from 0 to below 1")
            for rate in (1, -0.1, True, "0.9", None, float("nan"))
        ),
        *(
            ("unsigned_inputs", flag, f"{flag!r} is not valid; expected true or false")
            for flag in (0, 1, "true", None)
        ),
        ("weight_quantize_type", "abs_maxx", "'abs_maxx'; did you mean 'abs_max'?"),
        ("weight_quantize_type", None, "unknown type None"),
        ("weight_quantize_type", ["abs_max"], "unknown type ['abs_max']"),
        (
            "activation_quantize_type",
            "moving_average",
            "'moving_average'; did you mean 'moving_average_abs_max'?",
        ),
        ("activation_preprocess_type", "PAC", "'PAC'; did you mean 'PACT'?"),
        ("activation_preprocess_type", "none", "'none'; valid: PACT, LSQ"),
        ("weight_preprocess_type", "PACT", "'PACT'; valid: LSQ"),
        ("quantizable_layer_type", ["Conv2d"], "'Conv2d'; did you mean 'Conv2D'?"),
        ("quantizable_layer_type", ["Linear"], "expected it in ['Linear']"),
        ("quantizable_layer_type", [], "[] is not valid; expected a list of layer types"),
        ("quantizable_layer_type", None, "None is not valid"),
        ("dtype", "int4", "'int4' is not supported; expected 'int8'"),
        ("dtype", 8, "8 is not supported"),
        ("skip", 3, "3 is not valid; expected names or globs of layers"),
        ("skip", ["a", 3], "['a', 3] is not valid"),
        ("skip", [""], "[''] is not valid"),
    ],
)
def test_value_that_is_not_valid(key: str, value: Any, phrase: str) -> None:
    """One line with the component, the key, what was found and what is expected."""
    with pytest.raises(ConfigError) as caught:
        read_quant_config({**SHIPPED, key: value}, "PTQ")
    message = str(caught.value)
    assert message.startswith(f"PTQ.quant_config.{key}: ")
    assert phrase in message and "\n" not in message


@pytest.mark.parametrize(
    ("key", "close"),
    [("weight_bit", "weight_bits"), ("skips", "skip"), ("moving_rat", "moving_rate")],
)
def test_unknown_key(key: str, close: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_quant_config({key: 8})
    assert str(caught.value) == (f"QAT.quant_config: unknown key '{key}'; did you mean '{close}'?")


def test_key_that_is_no_text() -> None:
    with pytest.raises(ConfigError, match="QAT.quant_config: unknown key '8'; valid: "):
        read_quant_config({8: 8})


@pytest.mark.parametrize("config", [8, "int8", ["weight_bits"]])
def test_no_mapping(config: Any) -> None:
    with pytest.raises(ConfigError, match="QAT.quant_config: expected a mapping of keys, found "):
        read_quant_config(config)


@pytest.mark.parametrize(
    ("allowed", "unsigned", "bits"),
    [(True, True, 9), (True, False, 8), (False, True, 8), (False, False, 8)],
)
def test_bits_of_an_input(allowed: bool, unsigned: bool, bits: int) -> None:
    """0 to 255 are the steps above zero of nine bits with a sign."""
    found = read_quant_config({"unsigned_inputs": allowed}).input_bits(unsigned)
    assert found == bits and type(found) is int


def test_settings_come_back_from_json() -> None:
    found = read_quant_config({**SHIPPED, "skip": ["a.*"], "weight_bits": 4})
    assert settings_from_dict(json.loads(json.dumps(found.as_dict()))) == found


@pytest.mark.parametrize("damage", [{"weight_bits": "8"}, {"skip": 1}, {"moving_rate": 2}])
def test_settings_of_a_file_are_checked_too(damage: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(damage))):
        settings_from_dict({**QuantSettings().as_dict(), **damage})


@pytest.mark.parametrize("found", [None, [], {}, {**QuantSettings().as_dict(), "more": 1}])
def test_not_the_fields_of_settings(found: Any) -> None:
    with pytest.raises(TypeError, match="settings are .*'weight_bits'"):
        settings_from_dict(found)

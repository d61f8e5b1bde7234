"""Settings of a quantization, from the keys of PaddleDetection's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, Strict

from slim_det.core.errors import ConfigError
from slim_det.core.schema import check_keys, validated

WeightType = Literal["channel_wise_abs_max", "abs_max"]
ActivationType = Literal["moving_average_abs_max", "abs_max"]
LayerType = Literal["Conv2D", "Linear"]

# Field -> its key in PaddleDetection's files, if the two differ.
_KEYS = {
    "weight_type": "weight_quantize_type",
    "activation_type": "activation_quantize_type",
    "activation_preprocess": "activation_preprocess_type",
    "weight_preprocess": "weight_preprocess_type",
    "layer_types": "quantizable_layer_type",
}

# Keys of PaddleSlim that add nothing to the others.
_WITHOUT_EFFECT = {"window_size", "name", "onnx_format"}


def _as_tuple(value: Any) -> Any:
    """One text, or a list, as YAML gives them."""
    if isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


def _none_as_empty(value: Any) -> Any:
    return () if value is None else value


def _with_convolutions(types: tuple[str, ...]) -> tuple[str, ...]:
    if "Conv2D" not in types:
        raise ValueError(f"a detector is made of Conv2D; expected it in {list(types)}")
    return types


Bits = Annotated[
    int,
    Strict(),
    Field(ge=2, le=16, description="a whole number of bits from 2 to 16 (exported models take 8)"),
]
Rate = Annotated[
    float,
    Strict(),
    Field(ge=0, lt=1, allow_inf_nan=False, description="a number from 0 to below 1"),
]
LayerTypes = Annotated[
    tuple[LayerType, ...],
    BeforeValidator(_as_tuple),
    Field(min_length=1, description="a list of layer types"),
    AfterValidator(_with_convolutions),
]
Names = Annotated[
    tuple[Annotated[str, Field(min_length=1)], ...],
    BeforeValidator(_as_tuple),
    BeforeValidator(_none_as_empty),
    Field(description="names or globs of layers"),
]


@dataclass(frozen=True)
class QuantSettings:
    """How weights and activations become integers; symmetric, zero is zero.

    Attributes:
        weight_type: ``channel_wise_abs_max`` (a range for every output channel) or ``abs_max``
            (one for the tensor).
        activation_type: ``moving_average_abs_max`` (static) or ``abs_max`` (in training, of each
            batch; evaluation and export use the moving average, since engines have static scales).
        weight_bits: Bits of an integer weight, sign included; 8 gives -127 to 127.
        activation_bits: The same for activations.
        moving_rate: Weight of the previous moving average at each step.
        activation_preprocess: ``PACT`` or ``LSQ`` for a learned range, None for an observed one.
        weight_preprocess: ``LSQ`` or None.
        unsigned_inputs: Whether outputs of a ReLU are rounded to 0 to 255, as in oneDNN, and not to
            0 to 127. Paddle-Lite has signed inputs only; set false to train for it.
        layer_types: Layers that may be quantized. A detector of ppdet has no quantizable
            ``Linear``; the name is accepted because PaddleDetection's files have it.
        skip: Names or globs of additional layers that stay in float.
    """

    weight_type: WeightType = "channel_wise_abs_max"
    activation_type: ActivationType = "moving_average_abs_max"
    weight_bits: Bits = 8
    activation_bits: Bits = 8
    moving_rate: Rate = 0.9
    activation_preprocess: Literal["PACT", "LSQ", None] = None
    weight_preprocess: Literal["LSQ", None] = None
    unsigned_inputs: Annotated[bool, Strict(), Field(description="true or false")] = True
    layer_types: LayerTypes = ("Conv2D",)
    skip: Names = ()

    def input_bits(self, unsigned: bool) -> int:
        """Bits that simulate an input: one more behind a ReLU, as engines store 0 to 255 there."""
        return self.activation_bits + (unsigned and self.unsigned_inputs)

    def as_dict(self) -> dict[str, Any]:
        """The settings with values of JSON."""
        found = asdict(self)
        return {**found, "layer_types": list(self.layer_types), "skip": list(self.skip)}


def settings_from_dict(found: Mapping[str, Any]) -> QuantSettings:
    """The inverse of `QuantSettings.as_dict`.

    Raises:
        TypeError: It is not a mapping of these settings.
        ConfigError: A value is not valid.
    """
    names = {field.name for field in fields(QuantSettings)}
    if not isinstance(found, Mapping) or found.keys() != names:
        raise TypeError(f"settings are {sorted(names)}")
    return validated(QuantSettings, found, "")


def read_quant_config(config: Any, where: str = "QAT") -> QuantSettings:
    """Read ``quant_config`` of a slim file.

    Args:
        config: Mapping with the keys of PaddleDetection 2.6 (``weight_quantize_type``,
            ``activation_quantize_type``, ``weight_bits``, ``activation_bits``, ``moving_rate``,
            ``activation_preprocess_type``, ``weight_preprocess_type``,
            ``quantizable_layer_type``, ``dtype``, ``window_size``), ``unsigned_inputs`` and
            ``skip``; None for the defaults.
        where: The component, for messages.

    Raises:
        ConfigError: A key or a value is not valid.
    """
    config = {} if config is None else config
    where = f"{where}.quant_config"
    keys = {_KEYS.get(field.name, field.name): field.name for field in fields(QuantSettings)}
    check_keys(config, {*keys, *_WITHOUT_EFFECT, "dtype"}, where)
    if config.get("dtype", "int8") != "int8":
        raise ConfigError(f"{where}.dtype: {config['dtype']!r} is not supported; expected 'int8'")
    values = {keys[key]: value for key, value in config.items() if key in keys}
    return validated(QuantSettings, values, f"{where}.", spelled=_KEYS)

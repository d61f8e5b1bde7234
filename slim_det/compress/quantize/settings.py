"""What a quantization is asked for, from the keys that PaddleDetection's files use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from slim_det.core.errors import ConfigError, nearest

WEIGHT_TYPES = ("channel_wise_abs_max", "abs_max")
ACTIVATION_TYPES = ("moving_average_abs_max", "abs_max")
PREPROCESS_TYPES = ("PACT", "LSQ")
LAYER_TYPES = ("Conv2D", "Linear")
MIN_BITS, MAX_BITS = 2, 16

# Of PaddleSlim; they say nothing that is not said by another key.
_WITHOUT_EFFECT = {"window_size", "name", "onnx_format"}


@dataclass(frozen=True)
class QuantSettings:
    """How weights and activations become integers; symmetric, zero is zero.

    Attributes:
        weight_type: ``channel_wise_abs_max`` (a range for every output channel) or ``abs_max``
            (one for the tensor).
        activation_type: ``moving_average_abs_max`` (static) or ``abs_max`` (in training, of each
            batch; evaluation and export use the moving average, since engines have static scales).
        weight_bits: Of an integer weight, sign included; 8 gives -127 to 127.
        activation_bits: The same for activations.
        moving_rate: What a moving average keeps of itself at each step.
        activation_preprocess: ``PACT`` or ``LSQ``: a range that is learned; None: observed.
        weight_preprocess: ``LSQ`` or None.
        unsigned_inputs: Whether inputs that a ReLU made are rounded to 0 to 255, as oneDNN does
            with them, and not to 0 to 127. Paddle-Lite has signed inputs only: train with false
            for its sake.
        layer_types: Which layers may be quantized. A detector of ppdet has no quantizable
            ``Linear``; the name is accepted because PaddleDetection's files hold it.
        skip: Names or globs of layers that stay in float, on top of those that have to.
    """

    weight_type: str = "channel_wise_abs_max"
    activation_type: str = "moving_average_abs_max"
    weight_bits: int = 8
    activation_bits: int = 8
    moving_rate: float = 0.9
    activation_preprocess: str | None = None
    weight_preprocess: str | None = None
    unsigned_inputs: bool = True
    layer_types: tuple[str, ...] = ("Conv2D",)
    skip: tuple[str, ...] = ()

    def input_bits(self, unsigned: bool) -> int:
        """Bits of the signed integer that has as many steps above zero as an input's integer.

        Args:
            unsigned: Whether the input is never negative and so needs no sign.
        """
        return self.activation_bits + (unsigned and self.unsigned_inputs)

    def as_dict(self) -> dict[str, Any]:
        """The settings as JSON holds them."""
        found = asdict(self)
        return {**found, "layer_types": list(self.layer_types), "skip": list(self.skip)}


def settings_from_dict(found: Mapping[str, Any]) -> QuantSettings:
    """The inverse of `QuantSettings.as_dict`.

    Raises:
        TypeError: It is not a mapping of these settings.
        ConfigError: A value is not valid.
    """
    readers = {field: reader for field, reader in _READERS.values()}
    if not isinstance(found, Mapping) or found.keys() != readers.keys():
        raise TypeError(f"settings are {sorted(readers)}")
    return QuantSettings(**{field: readers[field](field, found[field]) for field in readers})


def read_quant_config(config: Any, where: str = "QAT") -> QuantSettings:
    """Read ``quant_config`` of a slim file.

    Args:
        config: Mapping with the keys of PaddleDetection 2.6 (``weight_quantize_type``,
            ``activation_quantize_type``, ``weight_bits``, ``activation_bits``, ``moving_rate``,
            ``activation_preprocess_type``, ``weight_preprocess_type``,
            ``quantizable_layer_type``, ``dtype``, ``window_size``) and ``skip``; None for the
            defaults.
        where: The component, for messages.

    Raises:
        ConfigError: A key or a value is not valid; one line that names it.
    """
    if config is None:
        config = {}
    if not isinstance(config, Mapping):
        raise ConfigError(f"{where}.quant_config: expected a mapping of keys, found {config!r}")
    where = f"{where}.quant_config"
    known = {*_READERS, *_WITHOUT_EFFECT, "dtype"}
    for key in config:
        if key not in known:
            raise ConfigError(f"{where}: unknown key '{key}'{nearest(str(key), sorted(known))}")
    if config.get("dtype", "int8") != "int8":
        raise ConfigError(f"{where}.dtype: {config['dtype']!r} is not supported; expected 'int8'")
    values = {}
    for key, (field, reader) in _READERS.items():
        if key in config:
            values[field] = reader(f"{where}.{key}", config[key])
    return QuantSettings(**values)


def read_bits(where: str, value: Any) -> int:
    """A number of bits.

    Raises:
        ConfigError: It is not a whole number from 2 to 16.
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not MIN_BITS <= value <= MAX_BITS:
        raise ConfigError(
            f"{where}: {value!r} is not valid; expected a whole number of bits from {MIN_BITS} to "
            f"{MAX_BITS} (exported models take 8)"
        )
    return int(value)


def read_skip(where: str, value: Any) -> tuple[str, ...]:
    """Names or globs of layers.

    Raises:
        ConfigError: It is neither text nor a list of texts.
    """
    names = [value] if isinstance(value, str) else value
    names = [] if names is None else names
    if not isinstance(names, (list, tuple)) or not all(isinstance(n, str) and n for n in names):
        raise ConfigError(f"{where}: {value!r} is not valid; expected names or globs of layers")
    return tuple(names)


def read_choice(where: str, value: Any, choices: tuple[str, ...]) -> str:
    """One of a few names.

    Raises:
        ConfigError: It is none of them.
    """
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{where}: unknown type {value!r}{nearest(str(value), choices)}")
    return value


def _read_rate(where: str, value: Any) -> float:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not 0 <= value < 1:
        raise ConfigError(f"{where}: {value!r} is not valid; expected a number from 0 to below 1")
    return float(value)


def _read_flag(where: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{where}: {value!r} is not valid; expected true or false")
    return value


def _read_layer_types(where: str, value: Any) -> tuple[str, ...]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, (list, tuple)) or not names:
        raise ConfigError(f"{where}: {value!r} is not valid; expected a list of layer types")
    types = tuple(read_choice(where, name, LAYER_TYPES) for name in names)
    if "Conv2D" not in types:
        raise ConfigError(f"{where}: a detector is made of Conv2D; expected it in {list(types)}")
    return types


_READERS: dict[str, tuple[str, Any]] = {
    "weight_quantize_type": ("weight_type", lambda w, v: read_choice(w, v, WEIGHT_TYPES)),
    "activation_quantize_type": (
        "activation_type",
        lambda w, v: read_choice(w, v, ACTIVATION_TYPES),
    ),
    "weight_bits": ("weight_bits", read_bits),
    "activation_bits": ("activation_bits", read_bits),
    "moving_rate": ("moving_rate", _read_rate),
    "activation_preprocess_type": (
        "activation_preprocess",
        lambda w, v: None if v is None else read_choice(w, v, PREPROCESS_TYPES),
    ),
    "weight_preprocess_type": (
        "weight_preprocess",
        lambda w, v: None if v is None else read_choice(w, v, ("LSQ",)),
    ),
    "unsigned_inputs": ("unsigned_inputs", _read_flag),
    "quantizable_layer_type": ("layer_types", _read_layer_types),
    "skip": ("skip", read_skip),
}

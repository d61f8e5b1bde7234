"""The record: which layers of a model are quantized and how, as JSON beside its weights.

What the plan is to a cut, the record is to a quantization: it is replayed before weights are
loaded, so that every command builds the same model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import paddle

from slim_det.errors import QuantError
from slim_det.quantize.settings import QuantSettings, settings_from_dict
from slim_det.version import __version__

SCHEMA = "slim_det.quantization/1"
_ATTRIBUTE = "slim_quantization"


@dataclass(frozen=True)
class QuantLayer:
    """One quantized convolution.

    Attributes:
        name: Its module path.
        norm: Module path of the batch norm that follows it and is folded into it; '' for none.
        shares: Module path of an earlier convolution that reads the same tensor, and so has the
            same range; '' where this is the first.
    """

    name: str
    norm: str = ""
    shares: str = ""


@dataclass
class QuantRecord:
    """What was quantized.

    Attributes:
        settings: Types and bits.
        layers: Quantized convolutions, in the order in which they run.
        kept_float: Module path -> why that layer stays in float.
        origin: Where the ranges are from: ``{"method": "aware" | "post", "observer": ...,
            "images": count, ...}``.
    """

    settings: QuantSettings
    layers: list[QuantLayer]
    kept_float: dict[str, str]
    origin: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> str:
        """The record as JSON text."""
        content = {
            "schema": SCHEMA,
            "slim_det": __version__,
            "settings": self.settings.as_dict(),
            "origin": self.origin,
            "layers": [
                {"name": layer.name, "norm": layer.norm, "shares": layer.shares}
                for layer in self.layers
            ],
            "kept_float": self.kept_float,
        }
        return json.dumps(content, indent=1) + "\n"

    def quantizes_like(self, other: QuantRecord) -> bool:
        """Whether both give the same layers the same kind of integers."""
        return self.settings == other.settings and self.layers == other.layers


def read_record(path: str | Path) -> QuantRecord:
    """Read a record.

    Raises:
        QuantError: The file is missing, damaged, or not a record of this version.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise QuantError(f"quantization record '{path}' cannot be read: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise QuantError(
            f"'{path}' is not a quantization record: schema is {found!r}, expected '{SCHEMA}'"
        )
    try:
        return QuantRecord(
            settings=settings_from_dict(data["settings"]),
            layers=[QuantLayer(**layer) for layer in data["layers"]],
            kept_float=dict(data["kept_float"]),
            origin=dict(data["origin"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise QuantError(f"quantization record '{path}' is damaged: {error!r}") from error


def attach_record(model: paddle.nn.Layer, record: QuantRecord | None) -> None:
    """Remember on the model how it is quantized; None where it is float again."""
    object.__setattr__(model, _ATTRIBUTE, record)


def record_of(model: paddle.nn.Layer) -> QuantRecord | None:
    """The record of a quantized model; None for a float one."""
    return getattr(model, _ATTRIBUTE, None)

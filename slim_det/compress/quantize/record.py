"""The record: which layers of a model are quantized and how, as JSON beside its weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import paddle

from slim_det.compress.quantize.settings import QuantSettings, settings_from_dict
from slim_det.compress.steps import Step, step_of
from slim_det.core.errors import QuantError, SlimDetError

_RANGES = (".activation.limit", ".activation.step")


@dataclass(frozen=True)
class QuantLayer:
    """One quantized convolution.

    Attributes:
        name: Its module path.
        norm: Module path of the batch norm that is folded into it; '' for none.
        shares: Module path of an earlier convolution whose input has the same integers, perhaps
            pooled or upsampled, and so the same range; '' for the first.
        unsigned: Whether its input is the output of a ReLU, whose integers have no sign.
    """

    name: str
    norm: str = ""
    shares: str = ""
    unsigned: bool = False


@dataclass(frozen=True)
class RoundedOutput:
    """A module whose output an addition reads as integers.

    Attributes:
        module: Its module path.
        readers: Module paths of the quantized convolutions that read it; the range is theirs.
        producers: Module paths of those that must be quantized for the engine to do so.
    """

    module: str
    readers: list[str]
    producers: list[str]


@dataclass
class QuantRecord(Step):
    """The step of a quantization.

    Attributes:
        settings: Types and bits.
        layers: Quantized convolutions, in the order in which they run.
        kept_float: Module path -> why that layer stays in float.
        origin: Source of the ranges: ``{"method": "aware" | "post", "observer": ...,
            "images": count, ...}``.
        rounded: Outputs of modules that additions read as integers.
    """

    suffix: ClassVar[str] = ".quant.json"
    schema: ClassVar[str] = "slim_det.quantization/1"
    title: ClassVar[str] = "quantization record"
    state: ClassVar[str] = "quantized"
    error: ClassVar[type[SlimDetError]] = QuantError

    settings: QuantSettings
    layers: list[QuantLayer]
    kept_float: dict[str, str]
    origin: dict[str, Any] = field(default_factory=dict)
    rounded: list[RoundedOutput] = field(default_factory=list)

    def content(self) -> dict[str, Any]:
        """What its file holds."""
        return {
            "settings": self.settings.as_dict(),
            "origin": self.origin,
            "layers": [asdict(layer) for layer in self.layers],
            "kept_float": self.kept_float,
            "rounded": [asdict(one) for one in self.rounded],
        }

    @classmethod
    def from_content(cls, content: dict[str, Any]) -> QuantRecord:
        """The inverse of `content`."""
        return QuantRecord(
            settings=settings_from_dict(content["settings"]),
            layers=_layers(content["layers"]),
            kept_float=_texts(content["kept_float"]),
            origin=dict(content["origin"]),
            rounded=[_rounded(one) for one in content.get("rounded", [])],
        )

    @classmethod
    def explains(cls, names: Iterable[str]) -> bool:
        """Whether the ranges of quantized layers are among the tensors."""
        return any(name.endswith(_RANGES) for name in names)

    def differs(self, other: QuantRecord) -> str:
        """Whether another record has other settings or layers, in words."""
        same = self.settings == other.settings and self.layers == other.layers
        return "" if same else "quantizes otherwise"

    def __str__(self) -> str:
        """One phrase for people."""
        return f"{len(self.layers)} layers quantized"


def _layers(found: list[dict[str, Any]]) -> list[QuantLayer]:
    """The layers of a record, each named once; those that share a range name an earlier layer."""
    layers = [_layer(entry) for entry in found]
    owners: set[str] = set()
    known: set[str] = set()
    for layer in layers:
        if not layer.name or layer.name in known:
            raise ValueError(f"layer '{layer.name}' is there twice or has no name")
        if layer.shares and layer.shares not in owners:
            raise ValueError(f"'{layer.name}' shares the range of '{layer.shares}', which has none")
        known.add(layer.name)
        if not layer.shares:
            owners.add(layer.name)
    return layers


def _layer(found: dict[str, Any]) -> QuantLayer:
    if not isinstance(found, dict):
        raise TypeError(f"{found!r} is not a layer")
    texts = _texts({key: value for key, value in found.items() if key != "unsigned"})
    if not isinstance(found["unsigned"], bool):
        raise TypeError(f"unsigned: {found['unsigned']!r} is neither true nor false")
    return QuantLayer(**texts, unsigned=found["unsigned"])


def _rounded(found: dict[str, Any]) -> RoundedOutput:
    one = RoundedOutput(**found)
    lists = (one.readers, one.producers)
    if not all(isinstance(names, list) and names for names in lists):
        raise TypeError(f"rounded: {found!r} names no convolutions")
    if not all(isinstance(name, str) for name in [one.module, *one.readers, *one.producers]):
        raise TypeError(f"rounded: {found!r} has a name that is no text")
    return one


def _texts(found: dict[str, str]) -> dict[str, str]:
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise TypeError(f"{found!r} is not a mapping of texts")
    return found


def record_of(model: paddle.nn.Layer) -> QuantRecord | None:
    """The record of a quantized model; None for a float one."""
    return step_of(model, QuantRecord)

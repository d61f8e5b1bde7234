"""The latency table: measured convolutions as JSON, and interpolation between them."""

from __future__ import annotations

import json
import logging
import math
import platform
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Optional

import paddle
from pydantic import Field

from slim_det.core.errors import LatencyError
from slim_det.core.files import read_json, write_text
from slim_det.core.schema import FiniteNumber, validated
from slim_det.planning.profile.shapes import ConvShape, Size, SizeOrZero

logger = logging.getLogger("slim_det")

SCHEMA = "slim_det.latency/1"
ENGINE = "paddle_inference"

Family = tuple  # everything of a shape except its widths

Text = Annotated[str, Field(description="text")]
Milliseconds = FiniteNumber
OptionalMilliseconds = Annotated[
    Optional[Milliseconds], Field(description="a finite number or null")
]
ImageSize = Annotated[
    Optional[tuple[Size, Size]], Field(description="[height, width] in pixels or null")
]


@dataclass(frozen=True)
class Origin:
    """What a table was measured with.

    Attributes:
        engine: ``paddle_inference`` if slim_det measured it.
        paddle: Version of Paddle; '' if unknown.
        cpu: Name of the processor.
        threads: CPU threads.
        precision: Of weights and activations.
    """

    engine: Text
    paddle: Text
    cpu: Text
    threads: Size = 1
    precision: Text = "float32"


@dataclass(frozen=True)
class Entry:
    """One measured convolution.

    Attributes:
        shape: The convolution.
        latency_ms: Median of the runs.
        p10_ms: 10th percentile of the runs.
        p90_ms: 90th percentile of the runs.
    """

    shape: ConvShape
    latency_ms: Milliseconds
    p10_ms: Milliseconds
    p90_ms: Milliseconds

    def as_dict(self) -> dict[str, Any]:
        """Shape and times with their JSON keys."""
        times = {"latency_ms": self.latency_ms, "p10_ms": self.p10_ms, "p90_ms": self.p90_ms}
        return {**self.shape.as_dict(), **{key: round(ms, 6) for key, ms in times.items()}}


@dataclass(frozen=True)
class LatencyTable:
    """Latencies of convolutions, batch 1.

    Attributes:
        origin: What they were measured with.
        entries: The convolutions, each once.
        repeats: Timed runs of each; 0 if unknown.
        image_size_hw: Image size of the model that has these convolutions; None without a model.
        other_ms: Latency of the model from image to boxes minus the sum of its convolutions;
            negative if convolutions are faster in the model than alone. None without a model.
    """

    origin: Origin
    entries: tuple[Entry, ...]
    repeats: SizeOrZero = 0
    image_size_hw: ImageSize = None
    other_ms: OptionalMilliseconds = None

    def latency_ms(self, shape: ConvShape) -> float:
        """Latency of one convolution.

        For a measured shape it is the median. Other widths are interpolated linearly over the
        output channels and then over the input channels, between the nearest widths measured with
        all other attributes equal (a depthwise convolution has only one width). Below the smallest
        width the latency is proportional to the width. If this activation was not measured,
        another one is used, because activations cost little.

        Raises:
            LatencyError: No such convolution was measured, or only narrower ones.
        """
        found = self._exact.get(shape)
        if found is not None:
            return found
        for family in self._families_like(shape):
            value = _interpolated(self._rows[family], *_widths(shape))
            if value is not None:
                return value
        raise LatencyError(
            f"the latency table does not cover {shape}; the nearest of its {len(self.entries)} "
            f"entries is {self._nearest(shape)}"
        )

    def model_ms(self, shapes: Iterable[ConvShape]) -> float:
        """Latency of a complete model: its convolutions and ``other_ms`` (0 if unknown).

        Args:
            shapes: Its convolutions, each as often as it is run.

        Raises:
            LatencyError: The table does not cover one of them.
        """
        return sum(map(self.latency_ms, shapes)) + (self.other_ms or 0.0)

    def to_json(self) -> str:
        """The table as JSON, one line per convolution."""
        head = {
            "schema": SCHEMA,
            **asdict(self.origin),
            "repeats": self.repeats,
            "image_size_hw": self.image_size_hw,
            "other_ms": None if self.other_ms is None else round(self.other_ms, 6),
        }
        lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in head.items()]
        rows = ",\n".join(f"    {json.dumps(entry.as_dict())}" for entry in self.entries)
        lines.append(f'  "convs": [\n{rows}\n  ]' if rows else '  "convs": []')
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def write(self, path: str | Path) -> None:
        """Write the JSON file atomically."""
        write_text(path, self.to_json())

    @cached_property
    def _exact(self) -> dict[ConvShape, float]:
        return {entry.shape: entry.latency_ms for entry in self.entries}

    @cached_property
    def _rows(self) -> dict[Family, dict[int, dict[int, float]]]:
        """Family -> input channels -> output channels -> ms."""
        rows: dict[Family, dict[int, dict[int, float]]] = {}
        for entry in self.entries:
            inside, out = _widths(entry.shape)
            family = rows.setdefault(_family(entry.shape), {})
            family.setdefault(inside, {})[out] = entry.latency_ms
        return rows

    def _families_like(self, shape: ConvShape) -> list[Family]:
        """The family of a shape, if measured, then those that differ only in the activation."""
        own = _family(shape)
        others = [family for family in self._rows if family[:-1] == own[:-1] and family != own]
        return [own, *others] if own in self._rows else others

    def _nearest(self, shape: ConvShape) -> str:
        def distance(entry: Entry) -> tuple[float, ...]:
            other = entry.shape
            same = [other.depthwise == shape.depthwise, other.kernel == shape.kernel]
            same += [other.stride == shape.stride, other.groups == shape.groups]
            pairs = [(getattr(other, name), getattr(shape, name)) for name in _SIZES]
            return (-float(sum(same)), sum(abs(math.log(a / b)) for a, b in pairs))

        return str(min(self.entries, key=distance).shape) if self.entries else "not there"


_SIZES = ("height", "width", "in_channels", "out_channels")


def read_table(path: str | Path) -> LatencyTable:
    """Read and check a latency table; warn if it is of another machine or engine.

    Raises:
        LatencyError: The file cannot be read or is not a latency table.
    """
    data = read_json(path, "latency table", SCHEMA, LatencyError)
    try:
        table = _table_from(data)
    except LatencyError as error:
        raise LatencyError(f"latency table '{path}': {error}") from None
    _warn_if_foreign(table.origin, path)
    return table


def this_machine(threads: int) -> Origin:
    """The origin of a table that is measured on this machine."""
    return Origin(ENGINE, str(paddle.__version__), _cpu_name(), threads)


def _warn_if_foreign(origin: Origin, path: str | Path) -> None:
    """Warn if a table was measured on another processor or with another engine."""
    here = this_machine(origin.threads)
    differences = [
        f"{name} {getattr(origin, name) or 'unknown'!s} (here {getattr(here, name)})"
        for name in ("engine", "paddle", "cpu", "precision")
        if getattr(origin, name) != getattr(here, name)
    ]
    if differences:
        logger.warning("latency table '%s' was measured with %s", path, ", ".join(differences))


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _table_from(data: Mapping[str, Any]) -> LatencyTable:
    if not isinstance(data.get("convs"), list):
        raise LatencyError("convs is not a list")
    entries = [_entry_from(row, f"convs[{i}]") for i, row in enumerate(data["convs"])]
    seen: set[ConvShape] = set()
    for entry in entries:
        if entry.shape in seen:
            raise LatencyError(f"{entry.shape} is listed twice")
        seen.add(entry.shape)
    origin = validated(Origin, data, "", LatencyError, complete=True)
    values = {**data, "origin": origin, "entries": entries}
    return validated(LatencyTable, values, "", LatencyError, complete=True)


def _entry_from(row: Any, where: str) -> Entry:
    if not isinstance(row, dict):
        raise LatencyError(f"{where} is {row!r}; expected a mapping")
    shape = validated(ConvShape, row, f"{where}.", LatencyError, complete=True)
    if shape.in_channels % shape.groups or shape.out_channels % shape.groups:
        raise LatencyError(f"{where}: {shape.groups} groups do not divide the channels")
    values = {**row, "shape": shape}
    entry = validated(Entry, values, f"{where}.", LatencyError, complete=True)
    if not 0 <= entry.p10_ms <= entry.latency_ms <= entry.p90_ms:
        raise LatencyError(f"{where}: expected 0 <= p10_ms <= latency_ms <= p90_ms")
    return entry


def _family(shape: ConvShape) -> Family:
    """Everything of a shape except its widths, the activation last."""
    place = (shape.height, shape.width, shape.kernel, shape.stride, shape.padding, shape.dilation)
    multiplier = shape.out_channels // shape.in_channels if shape.depthwise else 0
    return (*place, 0 if shape.depthwise else shape.groups, multiplier, shape.act)


def _widths(shape: ConvShape) -> tuple[int, int]:
    """The widths to interpolate over; a depthwise convolution has only the second."""
    return (1 if shape.depthwise else shape.in_channels), shape.out_channels


def _interpolated(rows: dict[int, dict[int, float]], inside: int, out: int) -> float | None:
    """Latency between measured widths; None above them.

    A table need not be a full grid: input widths count only if they were measured with outputs at
    least this wide.
    """
    column = {width: _between(row, out) for width, row in rows.items() if out <= max(row)}
    return _between(column, inside) if column and inside <= max(column) else None


def _between(points: Mapping[int, float], width: int) -> float:
    """Linear between the points, and between the narrowest and 0 ms at width 0."""
    known = sorted(points)
    place = bisect_left(known, width)
    upper = known[place]
    if upper == width:
        return points[upper]
    lower = known[place - 1] if place else 0
    low = points[lower] if place else 0.0
    return low + (points[upper] - low) * (width - lower) / (upper - lower)

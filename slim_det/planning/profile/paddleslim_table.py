"""The text table of PaddleSlim's latency evaluator, one operator per line.

Its header is `op_type<TAB>device<TAB>us`. The row of a convolution is
`conv,flag_bias,flag_relu,n,c_in,h,w,c_out,groups,kernel,padding,stride,dilation<TAB>us`.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path

from slim_det.core.errors import LatencyError, nearest
from slim_det.core.files import write_text
from slim_det.planning.profile.shapes import ConvShape
from slim_det.planning.profile.table import Entry, LatencyTable, Origin

logger = logging.getLogger("slim_det")

CONV_FIELDS = 13
OPERATORS = ("conv", "activation", "batch_norm", "eltwise", "pooling", "softmax")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class PaddleSlimRow:
    """One row of the file.

    Attributes:
        key: What was measured, its fields separated by commas.
        latency_us: Microseconds.
    """

    key: str
    latency_us: float

    @property
    def operator(self) -> str:
        """The first field: `conv` or another operator."""
        return self.key.split(",", 1)[0]


@dataclass(frozen=True)
class PaddleSlimTable:
    """A text table with the rows of all operators.

    Attributes:
        header: The first line without its newline, e.g. ``op_type<TAB>855<TAB>us``.
        rows: In the order of the file, each key once.
    """

    header: str
    rows: tuple[PaddleSlimRow, ...]

    @property
    def device(self) -> str:
        """The header's second field, e.g. ``855`` for a Snapdragon 855."""
        parts = [part.strip() for part in re.split(r"[\t,]", self.header)]
        return parts[1] if len(parts) > 1 and parts[1] else UNKNOWN


def read_paddleslim_table(path: str | Path) -> PaddleSlimTable:
    """Read and check a text table.

    Raises:
        LatencyError: It cannot be read, or a row is malformed, repeated, or of an unknown
            operator.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise LatencyError(f"latency table '{path}' cannot be read: {error}") from error
    if not lines or lines[0].split(",", 1)[0] in OPERATORS:
        raise LatencyError(f"'{path}' line 1: expected a header like 'op_type<TAB>device<TAB>us'")
    rows: dict[str, PaddleSlimRow] = {}
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        try:
            row = _row_from(line)
            if row.key in rows:
                raise ValueError(f"'{row.key}' is listed twice")
        except ValueError as error:
            raise LatencyError(f"'{path}' line {number}: {error}") from error
        rows[row.key] = row
    return PaddleSlimTable(lines[0], tuple(rows.values()))


def write_paddleslim_table(path: str | Path, table: PaddleSlimTable) -> None:
    """Write a text table atomically."""
    lines = [table.header, *(f"{row.key}\t{_plain(row.latency_us)}" for row in table.rows)]
    write_text(path, "\n".join(lines) + "\n")


def to_latency_table(text_table: PaddleSlimTable) -> LatencyTable:
    """The convolutions of a text table; a warning names the other operators, which are left out.

    Raises:
        LatencyError: A convolution was measured with several images, or with and without bias.
    """
    entries = []
    for row in text_table.rows:
        if row.operator == "conv":
            latency_ms = row.latency_us / 1e3
            entries.append(Entry(_shape_from(row.key), latency_ms, latency_ms, latency_ms))
    left = len(text_table.rows) - len(entries)
    if left:
        kinds = dict.fromkeys(row.operator for row in text_table.rows if row.operator != "conv")
        logger.warning("%d rows are not convolutions and are left out: %s", left, ", ".join(kinds))
    shapes = {entry.shape for entry in entries}
    if len(shapes) < len(entries):
        raise LatencyError("a convolution is listed with bias and without; keep one of the rows")
    return LatencyTable(Origin(UNKNOWN, "", text_table.device), tuple(entries))


def from_latency_table(table: LatencyTable, device: str | None = None) -> PaddleSlimTable:
    """A text table of the convolutions of a latency table.

    Args:
        table: Any latency table with square images and no activation but ReLU.
        device: For the header; by default the table's processor.

    Raises:
        LatencyError: The format cannot hold an activation.
    """
    rows = []
    for entry in table.entries:
        shape = entry.shape
        if shape.act not in ("", "relu"):
            raise LatencyError(
                f"the text table cannot hold {shape}: its only activation is relu; "
                "keep the JSON table"
            )
        numbers = (
            *(0, int(shape.act == "relu"), 1),
            *(shape.in_channels, shape.height, shape.width, shape.out_channels, shape.groups),
            *(shape.kernel, shape.padding, shape.stride, shape.dilation),
        )
        key = ",".join(["conv", *map(str, numbers)])
        rows.append(PaddleSlimRow(key, round(entry.latency_ms * 1e3, 3)))
    name = " ".join((device or table.origin.cpu).split())
    return PaddleSlimTable(f"op_type\t{name}\tus", tuple(rows))


def _row_from(line: str) -> PaddleSlimRow:
    key, tab, text = line.rstrip().partition("\t")
    if not tab:
        raise ValueError(f"'{line}' has no tab; expected 'operator,...<TAB>microseconds'")
    try:
        latency_us = float(text)
    except ValueError:
        latency_us = math.nan
    if not 0 <= latency_us < math.inf:
        raise ValueError(f"latency {text!r} is not a number of microseconds")
    operator = key.split(",", 1)[0]
    if operator not in OPERATORS:
        raise ValueError(f"unknown operator '{operator}'{nearest(operator, OPERATORS)}")
    if operator == "conv":
        _check_conv(key)
    return PaddleSlimRow(key, latency_us)


def _check_conv(key: str) -> None:
    """Check that the fields of a row are those of a convolution."""
    numbers = key.split(",")[1:]
    if len(numbers) != CONV_FIELDS - 1 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"'{key}' is not a convolution; expected 'conv' and 12 integers")
    bias, relu, *sizes = map(int, numbers)
    _, c_in, _, _, c_out, groups, *_ = sizes
    del sizes[7]  # padding may be 0
    if max(bias, relu) > 1 or min(sizes) < 1:
        raise ValueError(f"'{key}': flags are 0 or 1, sizes at least 1")
    if c_in % groups or c_out % groups:
        raise ValueError(f"'{key}': {groups} groups do not divide the channels")


def _shape_from(key: str) -> ConvShape:
    _, relu, images, c_in, height, width, c_out, groups, kernel, padding, stride, dilation = map(
        int, key.split(",")[1:]
    )
    if images != 1:
        raise LatencyError(f"'{key}' was measured with {images} images; expected 1")
    place = (c_in, c_out, height, width, kernel, stride, padding, dilation, groups)
    return ConvShape(*place, act="relu" if relu else "")


def _plain(number: float) -> str:
    """An integer without a fraction, as in the original files."""
    return str(int(number)) if number == int(number) else repr(number)

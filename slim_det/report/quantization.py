"""What quantization did to each layer, as a table and as JSON rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import paddle

from slim_det.compress.quantize.model import quantized_layers
from slim_det.compress.quantize.quantization_error import QuantizationError
from slim_det.compress.quantize.record import record_of
from slim_det.core.errors import QuantError
from slim_det.graph.integers import levels
from slim_det.report.tables import text_table

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class LayerRow:
    """One convolution.

    Attributes:
        name: Module path.
        reason: Why it stays in float (then the rest is None); '' if it is quantized.
        input_range: Largest absolute value of its input that is not clipped.
        input_scale: Value of one integer step of the input.
        weight_range: Smallest and largest range of its output channels, batch norm folded.
        sqnr_db: Signal-to-quantization-noise ratio of the output, with only this layer
            quantized, in decibels.
    """

    name: str
    reason: str = ""
    input_range: float | None = None
    input_scale: float | None = None
    weight_range: tuple[float, float] | None = None
    sqnr_db: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """The row with its JSON keys; an infinite SQNR is null."""
        row = {**asdict(self), "precision": "float32" if self.reason else "int8"}
        if self.sqnr_db is not None and not math.isfinite(self.sqnr_db):
            row["sqnr_db"] = None
        return row


def layer_rows(
    model: paddle.nn.Layer, quantization_errors: Mapping[str, QuantizationError]
) -> list[LayerRow]:
    """A row for every convolution: quantized ones as they run, then those in float.

    Args:
        model: A quantized model.
        quantization_errors: Module path -> quantization error; a layer without one has no SQNR.

    Raises:
        QuantError: The model is not quantized.
    """
    record = record_of(model)
    if record is None:
        raise QuantError("the model is not quantized")
    bits = {layer.name: record.settings.input_bits(layer.unsigned) for layer in record.layers}
    rows = []
    for name, layer in quantized_layers(model).items():
        limit, weights = float(layer.activation.range()), layer.weight_ranges()
        rows.append(
            LayerRow(
                name,
                input_range=limit,
                input_scale=limit / levels(bits[name]),
                weight_range=(float(weights.min()), float(weights.max())),
                sqnr_db=quantization_errors[name].sqnr_db if name in quantization_errors else None,
            )
        )
    return rows + [LayerRow(name, reason) for name, reason in record.kept_float.items()]


def report_table(rows: list[LayerRow]) -> Table:
    """The rows as a table for the terminal."""
    columns = ("layer", "input range", "input scale", "weight ranges", "SQNR dB", "in float")
    cells = [
        (
            row.name,
            _number(row.input_range, ".4g"),
            _number(row.input_scale, ".4g"),
            " .. ".join(f"{limit:.4g}" for limit in row.weight_range or ()),
            _number(row.sqnr_db, ".1f"),
            row.reason,
        )
        for row in rows
    ]
    return text_table(columns, cells)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)

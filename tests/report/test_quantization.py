"""What is said of each layer."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from slim_det.compress.quantize.model import keep_float
from slim_det.compress.quantize.observers import PtqOptions
from slim_det.compress.quantize.ptq import run_ptq
from slim_det.compress.quantize.quantization_error import QuantizationError
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.core.errors import QuantError
from slim_det.report.quantization import LayerRow, layer_rows, report_table
from tests.compress.quantize.small_nets import small_net
from tests.compress.quantize.test_quantization_error import quantized


def text_of(rows: list[LayerRow]) -> str:
    stream = io.StringIO()
    Console(file=stream, width=200).print(report_table(rows))
    return stream.getvalue()


def test_no_rows() -> None:
    assert "layer" in text_of([])
    with pytest.raises(QuantError, match="the model is not quantized"):
        layer_rows(small_net(), {})


def test_figures_by_hand() -> None:
    net = quantized()
    net.left.weight.set_value(
        np.array([[1, -2, 0.5, 0], [0.25, 0, 0, -0.125]], "float32").reshape(2, 4, 1, 1)
    )
    keep_float(net, ["right"], "too loud")
    error = QuantizationError(1000.0, 1.0, np.zeros(2), 1)
    rows = layer_rows(net, {"left": error, "right": error})
    assert [row.name for row in rows] == ["first", "left", "right"]
    first, left, right = rows
    assert first.sqnr_db is None and first.input_range == 3.0
    assert left.input_range == 5.0 and left.input_scale == pytest.approx(5 / 127)
    assert left.weight_range == (0.25, 2.0)
    assert left.sqnr_db == pytest.approx(30.0)
    assert right == LayerRow("right", "too loud")
    factor = net.norm.weight.numpy() / np.sqrt(net.norm._variance.numpy() + net.norm._epsilon)
    folded = np.abs(net.first.weight.numpy() * factor.reshape(-1, 1, 1, 1)).max((1, 2, 3))
    assert first.weight_range == pytest.approx((folded.min(), folded.max()), rel=1e-5)
    text = text_of(rows)
    assert "30.0" in text and "0.25 .. 2" in text and "too loud" in text and "0.03937" in text


def test_rows_are_json() -> None:
    rows = [LayerRow("a", "", 1.0, 1 / 127, (0.5, 1.0), float("inf")), LayerRow("b", "why")]
    found = json.loads(json.dumps([row.as_dict() for row in rows], allow_nan=False))
    assert found[0]["precision"] == "int8" and found[0]["sqnr_db"] is None
    assert found[0]["weight_range"] == [0.5, 1.0]
    assert found[1]["precision"] == "float32" and found[1]["reason"] == "why"


def test_an_input_without_a_sign_has_twice_the_steps(tiny_cfg: Any) -> None:
    """What a ReLU gives is rounded to integers up to 255."""
    net = small_net()
    ptq = run_ptq(net, tiny_cfg, QuantSettings(), PtqOptions("abs_max", 1))
    first, left, _ = layer_rows(net, ptq.quantization_errors)
    assert first.input_scale == pytest.approx(first.input_range / 127)
    assert left.input_scale == pytest.approx(left.input_range / 255)

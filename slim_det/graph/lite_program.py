"""Writes integers into a float program, in the form that Paddle-Lite's converter reads.

Paddle-Lite reads an older form than Paddle Inference: the input is rounded by one operator, the
weight holds integers as float32, and an operator behind the convolution multiplies by the scales
of both. Its converter folds all of that into an int8 convolution.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from slim_det.graph.int8_program import ENGINE_BITS, integer_weight, write_integers
from slim_det.graph.integers import LayerRanges
from slim_det.graph.op import Op
from slim_det.graph.operators import data_of, result_of, weight_of
from slim_det.graph.program import DeployProgram
from slim_det.graph.tracing import deployment_program


@deployment_program()
def write_lite_int8(
    p: DeployProgram, layers: Mapping[str, LayerRanges], weight_bits: int = ENGINE_BITS
) -> None:
    """Make convolutions of a float program int8 for Paddle-Lite, in place.

    Paddle Inference runs the same program only without oneDNN, whose fusion does not expect
    an addition behind the scales.

    Args:
        p: See `write_int8`.
        layers: See `write_int8`.
        weight_bits: Maximum bits of the integers; declared as 8 bits with a larger scale.

    Raises:
        ExportError: See `check_ranges`; the program is then unchanged.
    """

    def store_weight(p: DeployProgram, op: Op, found: LayerRanges) -> None:
        weight = weight_of(op)
        integers, scale = integer_weight(p.value(weight), found, weight_bits)
        p.set_value(weight, integers.astype(np.float32))
        p.set_value(f"{weight}.scale", scale)
        input_stem = data_of(op).removesuffix(".quantized")
        _dequantize_output(p, op, [f"{weight}.scale", f"{input_stem}.scale"])

    write_integers(p, layers, _round_input, store_weight)


@deployment_program()
def write_out_leaky_relu(p: DeployProgram) -> None:
    """Replace each leaky ReLU by (1 - a) * relu(x) + a * x, in place.

    Paddle-Lite's x86 build has no correct int8 path through its own leaky ReLU.
    """
    for op in [op for op in p.ops if op.type == "leaky_relu"]:
        source, output, slope = op.input("X"), op.output(), op.attrs["alpha"]
        relu, positive, negative = (f"{output}.{end}" for end in ("relu", "positive", "negative"))
        steps: Steps = [
            ("relu", {"X": [source]}, relu, {}),
            ("scale", {"X": [relu]}, positive, {"scale": 1.0 - slope, **_PLAIN_SCALE}),
            ("scale", {"X": [source]}, negative, {"scale": slope, **_PLAIN_SCALE}),
            ("elementwise_add", {"X": [positive], "Y": [negative]}, output, {"axis": -1}),
        ]
        _replace(p, op, steps)


@deployment_program()
def write_out_hard_swish(p: DeployProgram) -> None:
    """Replace each hard swish by x * clip(x + 3, 0, 6) / 6, in place.

    With the operator's own offset, threshold and divisor (1905.02244, section 5.2 for the usual
    ones). Paddle-Lite's x86 build fuses its own hard swish into int8 convolutions wrongly.
    """
    for op in [op for op in p.ops if op.type == "hard_swish"]:
        source, output = op.input("X"), op.output()
        offset, threshold, divisor = (op.attrs[name] for name in ("offset", "threshold", "scale"))
        moved, gate, product = (f"{output}.{end}" for end in ("moved", "gate", "product"))
        steps: Steps = [
            ("scale", {"X": [source]}, moved, {**_PLAIN_SCALE, "scale": 1.0, "bias": offset}),
            ("clip", {"X": [moved]}, gate, {"min": 0.0, "max": threshold}),
            ("elementwise_mul", {"X": [source], "Y": [gate]}, product, {"axis": -1}),
            ("scale", {"X": [product]}, output, {"scale": 1.0 / divisor, **_PLAIN_SCALE}),
        ]
        _replace(p, op, steps)


Steps = Sequence["tuple[str, dict[str, list[str]], str, dict[str, Any]]"]
"""Operators as type, inputs, output and attributes."""

_PLAIN_SCALE = {"bias": 0.0, "bias_after_scale": True}


def _replace(p: DeployProgram, op: Op, steps: Steps) -> None:
    """Replace an operator by others, whose results have the shape of its input."""
    place = p.remove(op)
    for i, (kind, inputs, result, attributes) in enumerate(steps):
        p.new_variable(result, like=op.input("X"))
        p.insert(place + i, kind, inputs, {"Out": [result]}, attributes)


def _round_input(p: DeployProgram, place: int, name: str, limit: float) -> str:
    """Round a tensor before the operator at ``place``; returns the name of the rounded one."""
    stem = name if f"{name}.scale" not in p.block.vars else f"{name}.{limit:g}"
    scale = f"{stem}.scale"
    p.set_value(scale, np.array([limit], np.float32))
    values = p.new_variable(f"{stem}.quantized", name)
    p.insert(
        place,
        "fake_quantize_moving_average_abs_max",
        {"X": [name], "InScale": [scale]},
        {"Out": [values], "OutScale": [scale]},
        {"bit_length": ENGINE_BITS, "is_test": True, "moving_rate": 0.9, "round_type": 0},
    )
    return values


def _dequantize_output(p: DeployProgram, op: Op, scales: list[str]) -> None:
    """Multiply the result of a convolution of integers by the scales of weight and input."""
    p.set_attribute(op, "quantization_type", "qat_with_weight")
    p.set_attribute(op, "bit_length", ENGINE_BITS)
    output = result_of(op)
    integers = p.new_variable(f"{output}.integers", output)
    p.rename_output(op, output, integers)
    p.insert(
        p.ops.index(op) + 1,
        "fake_channel_wise_dequantize_max_abs",
        {"X": [integers], "Scales": scales},
        {"Out": [output]},
        {"quant_bits": [ENGINE_BITS, ENGINE_BITS], "quant_axis": 0, "x_num_col_dims": 1},
    )

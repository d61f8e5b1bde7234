"""Writes integers into a float program, in the form that Paddle Inference's oneDNN passes read.

The weight of a convolution is stored as int8 and followed by ``dequantize_linear``; its input goes
through ``quantize_linear`` and ``dequantize_linear``. The engine replaces each such convolution by
an int8 kernel and keeps tensors in int8 between them, through activations and concatenations too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from slim_det.core.errors import ExportError
from slim_det.graph.integers import LayerRanges, levels, to_integers
from slim_det.graph.op import Op
from slim_det.graph.operators import data_of, declared, result_of, weight_of
from slim_det.graph.program import DeployProgram
from slim_det.graph.tracing import deployment_program

ENGINE_BITS = 8

_ATTRIBUTES = {"bit_length": ENGINE_BITS, "round_type": 0, "only_observer": False}


@deployment_program()
def write_int8(p: DeployProgram, layers: Mapping[str, LayerRanges]) -> None:
    """Make convolutions of a float program int8, in place.

    Ranges become the engine's scales unchanged: its integer q means q * scale / 127, so a weight
    of fewer bits, whose largest integer is L, gets its range * 127 / L.

    Args:
        p: A program without batch norm behind these convolutions (`fold_batch_norm`).
        layers: Name of a weight in the program -> its ranges.

    Raises:
        ExportError: See `check_ranges`; the program is then unchanged.
    """
    rounded = write_integers(p, layers, _round_input, _store_weight)
    _round_concatenated(p, rounded)
    _mark_as_float(p)


def write_integers(
    p: DeployProgram,
    layers: Mapping[str, LayerRanges],
    round_input: Callable[[DeployProgram, int, str, float], str],
    store_weight: Callable[[DeployProgram, Op, LayerRanges], None],
) -> dict[tuple[str, float], str]:
    """Round the inputs and store the weights of convolutions, in whatever form.

    Args:
        p: See `write_int8`.
        layers: See `write_int8`.
        round_input: Rounds a variable to a range before the operator at an index, and returns
            the name of the rounded one. Called once for all convolutions that need the same.
        store_weight: Stores the weight of a convolution as integers.

    Returns:
        (variable, range) -> name of the rounded variable.
    """
    check_ranges(p, layers)
    rounded: dict[tuple[str, float], str] = {}
    for op in p.convolutions:
        found = layers.get(weight_of(op))
        if found is None:
            continue
        key = (data_of(op), found.input_range)
        if key not in rounded:
            rounded[key] = round_input(p, p.ops.index(op), *key)
        p.rename_input(op, key[0], rounded[key])
        store_weight(p, op, found)
    return rounded


def check_ranges(p: DeployProgram, layers: Mapping[str, LayerRanges]) -> None:
    """Make sure that these layers can be int8.

    Raises:
        ExportError: There is no such convolution, its batch norm is not folded, no engine has
            its bits, or a range is missing, not finite or not positive.
    """
    known = {weight_of(op): op for op in p.convolutions}
    for name, found in layers.items():
        if name not in known:
            raise ExportError(
                f"'{name}' is not a float convolution of the program; expected one of its "
                f"{len(known)} convolutions"
            )
        if any(r.type == "batch_norm" for r in p.readers(result_of(known[name]))):
            raise ExportError(f"'{name}': its batch norm is not folded; fold it first")
        if found.activation_bits != ENGINE_BITS or found.weight_bits > ENGINE_BITS:
            raise ExportError(
                f"'{name}' has {found.weight_bits}-bit weights and {found.activation_bits}-bit "
                f"inputs; int8 engines take weights of up to 8 bits and inputs of 8"
            )
        ranges = np.asarray(found.weight_ranges, np.float64)
        channels = p.block.var(name).shape[0]
        if ranges.shape not in ((1,), (channels,)):
            raise ExportError(f"'{name}' has {ranges.size} weight ranges; expected 1 or {channels}")
        if not found.is_usable:
            raise ExportError(
                f"'{name}' has lost its scales (input range {found.input_range:g}); expected "
                "positive numbers: quantize again"
            )


def int8_layers(p: DeployProgram) -> list[str]:
    """Names of the weights of convolutions with int8 weights and rounded inputs, in order."""
    return [p.stored_weight(op) for op in p.convolutions if _is_int8(p, op)]


def float_layers(p: DeployProgram) -> list[str]:
    """Names of the weights of the other convolutions, in order."""
    return [p.stored_weight(op) for op in p.convolutions if not _is_int8(p, op)]


@deployment_program()
def remove_int8(p: DeployProgram) -> None:
    """Turn an int8 program into a float one with the same rounded weights, in place.

    Inputs are no longer rounded. For CPUs whose int8 kernels are missing or slower than float.
    """
    for op in [op for op in p.ops if op.type == "dequantize_linear"]:
        source, output = op.input("X"), op.output("Y")
        names = [source, op.input("Scale"), op.input("ZeroPoint"), output]
        before = p.writer(source)
        if before is None:
            scale = p.value(names[1]).astype(np.float64).reshape(-1, 1, 1, 1)
            weight = p.value(source) * scale / levels(ENGINE_BITS)
            p.set_value(source, weight.astype(np.float32))
            names.remove(source)
        else:
            source = before.input("X")
            p.remove(before)
        for reader in p.readers(output):
            p.rename_input(reader, output, source)
        p.remove(op)
        for name in names:
            p.block._remove_var(name)


def for_kernels(p: DeployProgram, int8: bool) -> DeployProgram:
    """The program for an engine: itself, or a float copy if int8 kernels are missing."""
    if int8 or not int8_layers(p):
        return p
    p = p.copy()
    remove_int8(p)
    return p


def _mark_as_float(p: DeployProgram) -> None:
    """Make one number of each float weight that holds integers a fraction.

    The engine takes a weight of whole numbers below 128 for an int8 one, whatever its type. The
    positions that PP-YOLOE's and PicoDet's heads average are such weights: 0, 1, 2, ...
    """
    for name in {weight_of(op) for op in p.ops}:
        if not name or not p.is_parameter(name):
            continue
        weight = p.value(name)
        if weight.dtype == np.float32 and (weight == np.trunc(weight)).all():
            place = int(np.abs(weight).argmin())  # a zero, which becomes as good as zero
            tiny, value = np.float32(1e-30), weight.flat[place]
            weight.flat[place] = np.nextafter(value, np.float32(np.inf)) if value else tiny
            p.set_value(name, weight)


def _round_concatenated(p: DeployProgram, rounded: dict[tuple[str, float], str]) -> None:
    """Round all parts of a concatenation that an int8 convolution reads, to its range.

    A part that no int8 convolution reads, because its other readers stay in float, has no scale of
    its own; the engine would then concatenate integers of different kinds, or fail. A part that is
    another tensor upsampled is rounded before that: integers of a ReLU have no sign, and the engine
    does not know this of the upsampled tensor.
    """
    limits = dict(rounded.keys())
    for concat in [op for op in p.ops if op.type == "concat"]:
        limit = limits.get(concat.output())
        if limit is None:
            continue
        for name in list(concat.inputs["X"]):
            reader, writer = concat, p.writer(name)
            while name not in limits and writer and declared(writer).keeps_range(writer):
                reader, name = writer, data_of(writer)
                writer = p.writer(name)
            if name in limits:
                continue
            key = (name, limit)
            if key not in rounded:
                rounded[key] = _round_input(p, p.ops.index(p.readers(name)[0]), *key)
            p.rename_input(reader, name, rounded[key])


def integer_weight(weight: np.ndarray, found: LayerRanges, bits: int) -> tuple[Any, Any]:
    """The integers of a weight and the engine's scale of each channel.

    Args:
        weight: float [Cout, ...], batch norm folded.
        found: Its ranges.
        bits: Maximum bits of an integer.

    Returns:
        Integers as float64 with the shape of ``weight``, and scales float32 [Cout]: an integer q
        means q * scale / 127.
    """
    bits = min(bits, found.weight_bits)
    ranges = np.asarray(found.weight_ranges, np.float64)
    scale = np.broadcast_to(ranges * levels(ENGINE_BITS) / levels(bits), weight.shape[:1])
    return to_integers(weight, ranges, bits), scale.astype(np.float32)


def _round_input(p: DeployProgram, place: int, name: str, limit: float) -> str:
    """Round a tensor before the operator at ``place``; returns the name of the rounded one."""
    stem = name if f"{name}.scale" not in p.block.vars else f"{name}.{limit:g}"
    p.set_value(f"{stem}.scale", np.array([limit], np.float32))
    p.set_value(f"{stem}.zero", np.zeros(1, np.int32))
    integers = p.new_variable(f"{stem}.quantized", name)
    values = p.new_variable(f"{stem}.dequantized", name)
    parameters = {"Scale": [f"{stem}.scale"], "ZeroPoint": [f"{stem}.zero"]}
    attributes = {**_ATTRIBUTES, "quant_axis": -1}
    p.insert(
        place,
        "quantize_linear",
        {"X": [name], **parameters},
        {"Y": [integers]},
        {**attributes, "is_test": True},
    )
    p.insert(
        place + 1, "dequantize_linear", {"X": [integers], **parameters}, {"Y": [values]}, attributes
    )
    return values


def _store_weight(p: DeployProgram, op: Op, found: LayerRanges) -> None:
    """Store a weight as int8, and dequantize it before its convolution."""
    name = weight_of(op)
    integers, scale = integer_weight(p.value(name), found, ENGINE_BITS)
    values = p.new_variable(f"{name}.dequantized", name)
    p.set_value(name, integers.astype(np.int8))
    p.set_value(f"{name}.scale", scale)
    p.set_value(f"{name}.zero", np.zeros(scale.shape, np.int32))
    p.insert(
        p.ops.index(op),
        "dequantize_linear",
        {"X": [name], "Scale": [f"{name}.scale"], "ZeroPoint": [f"{name}.zero"]},
        {"Y": [values]},
        {**_ATTRIBUTES, "quant_axis": 0},
    )
    p.rename_input(op, name, values)


def _is_int8(p: DeployProgram, op: Op) -> bool:
    """Whether the engine would run a convolution with an int8 kernel."""
    writers = [p.writer(name) for name in (weight_of(op), data_of(op))]
    stored = [w.input("X") for w in writers if w and w.type == "dequantize_linear"]
    return len(stored) == 2 and p.value(stored[0]).dtype == np.int8

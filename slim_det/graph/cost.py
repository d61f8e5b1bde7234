"""What a model costs: multiply-accumulates, parameters, bytes. The one counting rule.

One MAC is one multiply-accumulate of a convolution (deformable included) or a matrix
product, at a stated image size and batch 1. Bias, batch norm and activations are not
counted. FLOPs, where printed, are 2 x MACs. Parameters are counted trainable and in all
(the running statistics of batch norm included).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

import paddle

from slim_det.graph.trace import Op, Trace, trace_detector

BYTES_PER_FLOAT = 4


@dataclass(frozen=True)
class Cost:
    """Cost of a model at one image size.

    Attributes:
        macs: Multiply-accumulates for one image.
        params_trainable: Numbers that an optimizer may change.
        params: All parameters, running statistics of batch norm included.
        size_mb: Bytes of all parameters as float32, in megabytes (10^6 bytes).
    """

    macs: int
    params_trainable: int
    params: int
    size_mb: float

    def as_dict(self) -> dict[str, float]:
        """The four figures under their JSON keys."""
        return asdict(self)

    @classmethod
    def from_dict(cls, figures: Mapping[str, float]) -> Cost:
        """Read back what `as_dict` gave."""
        return cls(
            int(figures["macs"]),
            int(figures["params_trainable"]),
            int(figures["params"]),
            float(figures["size_mb"]),
        )


def detector_cost(model: paddle.nn.Layer, image_size_hw: tuple[int, int]) -> Cost:
    """Measure a detector at an image size (height, width in pixels)."""
    return model_cost(model, trace_detector(model, image_size_hw))


def model_cost(
    model: paddle.nn.Layer,
    trace: Trace,
    parameter_shapes: Mapping[str, tuple[int, ...]] | None = None,
) -> Cost:
    """Combine the MACs of a trace with the parameter counts of the model it was taken from.

    Args:
        model: The model that was traced.
        trace: Its operators.
        parameter_shapes: State-dict name -> shape, for parameters that a plan will make
            smaller; the cost is then that of the model after the cut.
    """
    replaced = parameter_shapes or {}
    sizes = {name: math.prod(replaced.get(name, p.shape)) for name, p in model.named_parameters()}
    total = sum(sizes.values())
    trainable = sum(sizes[name] for name, p in model.named_parameters() if not p.stop_gradient)
    macs = count_macs(trace, parameter_shapes)
    return Cost(macs, trainable, total, total * BYTES_PER_FLOAT / 1e6)


def count_macs(trace: Trace, parameter_shapes: Mapping[str, tuple[int, ...]] | None = None) -> int:
    """Count the MACs of a traced model.

    Args:
        trace: The model's operators.
        parameter_shapes: State-dict name -> shape, for parameters that a plan will make
            smaller; the count is then that of the model after the cut.

    Returns:
        MACs for one image; deformable convolutions included.
    """
    return sum(macs_by_parameter(trace, parameter_shapes).values())


def macs_by_parameter(
    trace: Trace, parameter_shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, int]:
    """MACs of each weight tensor (state-dict name, or variable name where it has none)."""
    replaced = parameter_shapes or {}

    def shape_of(variable: str) -> tuple[int, ...]:
        name = trace.parameters.get(variable, "")
        return replaced.get(name, trace.shapes[variable])

    counts: dict[str, int] = {}
    for op in trace.ops:
        rule = _RULES.get(op.type)
        if rule is None:
            continue
        weight, macs = rule(op, trace, shape_of)
        name = trace.parameters.get(weight, weight)
        counts[name] = counts.get(name, 0) + macs
    return counts


ShapeOf = Callable[[str], "tuple[int, ...]"]


def _convolution(op: Op, trace: Trace, shape_of: ShapeOf) -> tuple[str, int]:
    """Every output pixel multiplies each weight once."""
    weight = op.input("Filter")
    pixels = _pixels(trace.shapes[op.output("Output")], op)
    return weight, pixels * math.prod(shape_of(weight))


def _transposed_convolution(op: Op, trace: Trace, shape_of: ShapeOf) -> tuple[str, int]:
    """Every input pixel multiplies each weight once."""
    weight = op.input("Filter")
    pixels = _pixels(trace.shapes[op.input("Input")], op)
    return weight, pixels * math.prod(shape_of(weight))


def _matrix_product(op: Op, trace: Trace, shape_of: ShapeOf) -> tuple[str, int]:
    """Each row of the left operand multiplies each weight of the right one once."""
    right = op.input("Y")
    shape = trace.shapes[right]
    columns = 1 if len(shape) == 1 else shape[-2 if op.attrs.get("trans_y") else -1]
    rows = math.prod(trace.shapes[op.output()]) // columns
    return right, rows * math.prod(shape_of(right)[-2:])


def _pixels(shape: tuple[int, ...], op: Op) -> int:
    return math.prod(shape[1:3] if op.attrs.get("data_format") == "NHWC" else shape[2:])


_RULES: dict[str, Callable[[Op, Trace, ShapeOf], tuple[str, int]]] = {
    "conv2d": _convolution,
    "depthwise_conv2d": _convolution,
    "deformable_conv": _convolution,
    "deformable_conv_v1": _convolution,
    "conv2d_transpose": _transposed_convolution,
    "matmul_v2": _matrix_product,
    "mul": _matrix_product,
}

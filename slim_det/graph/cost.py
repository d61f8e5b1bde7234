"""What a model costs: multiply-accumulates, parameters, bytes. The one counting rule.

One MAC is one multiply-accumulate of a convolution (deformable included) or a matrix product, at
a given image size and batch 1. Bias, batch norm and activations are not counted. Printed FLOPs
are 2 x MACs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import paddle

from slim_det.graph.operators import data_of, declared, result_of, weight_of
from slim_det.graph.trace import Trace, trace_detector

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
        """The figures under their JSON keys."""
        return asdict(self)

    @classmethod
    def from_dict(cls, figures: Mapping[str, float]) -> Cost:
        """Read back the result of `as_dict`."""
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
    """Combine the MACs of a trace with the parameter counts of its model.

    Args:
        model: The model that was traced.
        trace: Its operators.
        parameter_shapes: State-dict name -> shape, for parameters that a plan will make
            smaller; the cost is then that of the pruned model.
    """
    replaced = parameter_shapes or {}
    sizes = {name: math.prod(replaced.get(name, p.shape)) for name, p in model.named_parameters()}
    total = sum(sizes.values())
    trainable = sum(sizes[name] for name, p in model.named_parameters() if not p.stop_gradient)
    macs = count_macs(trace, parameter_shapes)
    return Cost(macs, trainable, total, total * BYTES_PER_FLOAT / 1e6)


def count_macs(trace: Trace, parameter_shapes: Mapping[str, tuple[int, ...]] | None = None) -> int:
    """MACs of a traced model for one image; ``parameter_shapes`` as for `model_cost`."""
    return sum(macs_by_parameter(trace, parameter_shapes).values())


def macs_by_parameter(
    trace: Trace, parameter_shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, int]:
    """MACs of each weight by its state-dict name, or by its variable's name if it has none.

    Layers on tensors whose size is not known before the program runs are not counted.
    """
    replaced = parameter_shapes or {}
    counts: dict[str, int] = {}
    for op in trace.ops:
        uses = declared(op).macs
        if uses is None:
            continue
        weight = weight_of(op)
        shapes = [trace.shapes[name] for name in (data_of(op), weight, result_of(op))]
        if any(side < 0 for shape in shapes for side in shape):
            continue
        name = trace.parameters.get(weight, weight)
        shape = replaced.get(name, trace.shapes[weight])
        counts[name] = counts.get(name, 0) + uses(op, *shapes) * math.prod(shape)
    return counts

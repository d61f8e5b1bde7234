"""The operators of a model, in execution order, with every shape at a stated image size.

The cost table and the pruning groups both read this and nothing else of the model's code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import paddle

from slim_det.core.errors import ConfigError
from slim_det.graph.dygraph import evaluation_mode
from slim_det.graph.tracing import deployment_program, detector_spec


@dataclass(frozen=True)
class Op:
    """One operator of the traced program.

    Attributes:
        type: Paddle's operator name, e.g. ``conv2d``.
        inputs: Slot name -> variable names.
        outputs: Slot name -> variable names.
        attrs: Attribute name -> value.
    """

    type: str
    inputs: dict[str, list[str]]
    outputs: dict[str, list[str]]
    attrs: dict[str, Any]

    def input(self, slot: str) -> str:
        """The one variable of an input slot; '' where the slot is empty."""
        return (self.inputs.get(slot) or [""])[0]

    def output(self, slot: str = "Out") -> str:
        """The one variable of an output slot; '' where the slot is empty."""
        return (self.outputs.get(slot) or [""])[0]

    @property
    def input_arg_names(self) -> list[str]:
        """Every variable that it reads, called as Paddle calls it."""
        return [name for names in self.inputs.values() for name in names]

    @property
    def output_arg_names(self) -> list[str]:
        """Every variable that it gives, called as Paddle calls it."""
        return [name for names in self.outputs.values() for name in names]


@dataclass(frozen=True)
class Trace:
    """A model's operators at one input size, batch 1.

    Attributes:
        ops: Operators in execution order.
        shapes: Variable name -> shape.
        parameters: Variable name -> name in the model's state dict (`neck.x.conv.weight`).
        outputs: Variables that the model returns.
        image_size_hw: Height and width of the image that was traced; None for plain layers.
    """

    ops: list[Op]
    shapes: dict[str, tuple[int, ...]]
    parameters: dict[str, str]
    outputs: list[str]
    image_size_hw: tuple[int, int] | None

    def readers(self) -> dict[str, list[Op]]:
        """Variable -> the operators that read it, in order."""
        found: dict[str, list[Op]] = {}
        for op in self.ops:
            for name in dict.fromkeys(op.input_arg_names):
                found.setdefault(name, []).append(op)
        return found

    def makers(self) -> dict[str, Op]:
        """Variable -> the operator that gives it."""
        return {name: op for op in self.ops for name in op.output_arg_names}


def trace_detector(model: paddle.nn.Layer, image_size_hw: tuple[int, int]) -> Trace:
    """Trace a ppdet detector from image to boxes, in evaluation mode, batch 1.

    Args:
        model: An architecture of ppdet (its ``forward`` takes one dict).
        image_size_hw: Height and width in pixels.

    Raises:
        ConfigError: The model does not run at this size (an error of the model, named).
    """
    height, width = image_size_hw
    try:
        return trace_layer(model, [detector_spec(image_size_hw, batch=1)], image_size_hw)
    except Exception as error:  # whatever the model's code raises at this size
        reason = str(error).strip().splitlines()[-1].strip()
        raise ConfigError(
            f"the model does not run on an image of {height}x{width} pixels: {reason}"
        ) from error


def trace_layer(
    layer: paddle.nn.Layer,
    input_spec: list[Any],
    image_size_hw: tuple[int, int] | None = None,
) -> Trace:
    """Trace any layer for given inputs, in evaluation mode; the layer is left as it was."""
    with evaluation_mode(layer), deployment_program():
        function = paddle.jit.to_static(layer.forward, input_spec=input_spec, full_graph=True)
        concrete = function.concrete_program
        block = concrete.main_program.global_block()
        ops = [_read_op(op) for op in block.ops]
        shapes = {name: tuple(var.shape) for name, var in block.vars.items()}
        outputs = [
            var.name for var in paddle.utils.flatten(concrete.outputs) if hasattr(var, "name")
        ]
    parameters = {param.name: name for name, param in layer.named_parameters()}
    return Trace(ops, shapes, parameters, outputs, image_size_hw)


def _read_op(op: Any) -> Op:
    return Op(
        type=op.type,
        inputs={slot: list(op.input(slot)) for slot in op.input_names},
        outputs={slot: list(op.output(slot)) for slot in op.output_names},
        attrs={name: op.attr(name) for name in op.attr_names if not name.startswith("op_")},
    )

"""A model as a program: to read every shape at a given image size, or to deploy.

The cost table and the pruning groups read a trace, and none of the model's code.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paddle

from slim_det.core.errors import ConfigError
from slim_det.graph.concat_relu import move_relu_before_concat
from slim_det.graph.dygraph import evaluation_mode
from slim_det.graph.op import Op
from slim_det.graph.open_sides import close_sides
from slim_det.graph.program import DeployProgram, Program
from slim_det.graph.proposals import with_box_counts
from slim_det.graph.tracing import deployment_program, detector_spec

_TENSOR = paddle.base.core.VarDesc.VarType.LOD_TENSOR
"""Variables of other types, such as the scopes of a condition, have no shape."""


@dataclass(frozen=True)
class Trace(Program):
    """A model's operators at one input size, batch 1.

    Attributes:
        ops: Operators in execution order.
        shapes: Variable name -> shape, of every tensor; for the largest number of boxes where it
            depends on the image.
        parameters: Variable name -> name in the model's state dict (`neck.x.conv.weight`).
        outputs: Variables that the model returns.
        image_size_hw: Height and width of the image that was traced; None for plain layers.
    """

    ops: list[Op]
    shapes: dict[str, tuple[int, ...]]
    parameters: dict[str, str]
    outputs: list[str]
    image_size_hw: tuple[int, int] | None

    def is_parameter(self, name: str) -> bool:
        """Whether a variable is in the model's state dict."""
        return name in self.parameters


def trace_detector(model: paddle.nn.Layer, image_size_hw: tuple[int, int]) -> Trace:
    """Trace a ppdet detector from image to boxes, in evaluation mode, batch 1.

    Raises:
        ConfigError: The model does not run at this size; the message ends with the model's own.
    """
    height, width = image_size_hw
    try:
        return trace_layer(model, [detector_spec(image_size_hw, batch=1)], image_size_hw)
    except Exception as error:  # whatever the model's code raises at this size
        even = not (height % 32 or width % 32)
        hint = "" if even else "; most detectors need multiples of 32 pixels (--image_size)"
        raise ConfigError(
            f"the model does not run on an image of {height}x{width} pixels: {_reason(error)}{hint}"
        ) from error


def _reason(error: Exception) -> str:
    """What the model's code or Paddle says last; the line of code of an error without a message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("[operator", "[Hint"))]
    last = said[-1] if said else type(error).__name__
    marked = [line for line, mark in zip(lines, lines[1:]) if mark.endswith("<--- HERE")]
    return f"{last} at '{marked[-1]}'" if marked and last.endswith("Error") else last


def trace_layer(
    layer: paddle.nn.Layer,
    input_spec: list[Any],
    image_size_hw: tuple[int, int] | None = None,
) -> Trace:
    """Trace any layer for given inputs, in evaluation mode; the layer stays unchanged."""
    with evaluation_mode(layer), deployment_program(layer):
        function = paddle.jit.to_static(layer.forward, input_spec=input_spec, full_graph=True)
        concrete = function.concrete_program
        close_sides(concrete.main_program.global_block())
        ops, shapes = _read(concrete.main_program.global_block())
        outputs = [var.name for var in _outputs(concrete)]
    read = {name for op in ops for name in op.input_arg_names}.union(outputs)
    # A condition also joins the variables that its branches use for themselves.
    ops = [op for op in ops if op.type != "select_input" or op.output() in read]
    parameters = {param.name: name for name, param in layer.named_parameters()}
    return Trace(ops, with_box_counts(ops, shapes), parameters, outputs, image_size_hw)


def _read(block: Any) -> tuple[list[Op], dict[str, tuple[int, ...]]]:
    """Operators and shapes of a block; both branches of a condition are listed, one by one."""
    ops: list[Op] = []
    shapes = {name: tuple(var.shape) for name, var in block.vars.items() if var.type == _TENSOR}
    for raw in block.ops:
        if raw.type != "conditional_block":
            ops.append(Op.read(raw))
            continue
        branch_ops, branch_shapes = _read(block.program.block(raw._block_attr_id("sub_block")))
        ops += branch_ops
        shapes.update(branch_shapes)
    return ops, shapes


def _outputs(concrete: Any) -> list[Any]:
    """The variables that a traced layer returns."""
    return [var for var in paddle.utils.flatten(concrete.outputs) if hasattr(var, "name")]


def save_detector(model: paddle.nn.Layer, image_size_hw: tuple[int, int], stem: str | Path) -> None:
    """Write a detector, from image to boxes, as `.pdmodel` and `.pdiparams`.

    Args:
        model: A ppdet architecture in evaluation mode.
        image_size_hw: Height and width in pixels.
        stem: The files without suffix, in an existing folder.
    """
    _save(model, [detector_spec(image_size_hw)], stem)


def trace_program(
    model: paddle.nn.Layer, image_size_hw: tuple[int, int], batch: int | None = None
) -> DeployProgram:
    """A detector from image to boxes as a program with a copy of its parameters.

    Args:
        model: A ppdet architecture.
        image_size_hw: Height and width in pixels; -1 for any.
        batch: Number of images; None for any.
    """
    return layer_program(model, [detector_spec(image_size_hw, batch)])


def layer_program(layer: paddle.nn.Layer, input_spec: list[Any]) -> DeployProgram:
    """Any layer as a program, in evaluation mode, with a copy of its parameters."""
    with evaluation_mode(layer), tempfile.TemporaryDirectory(prefix="slim_det_program_") as folder:
        stem = Path(folder) / "model"
        _save(layer, input_spec, stem)
        return DeployProgram.load(stem)


def _save(layer: paddle.nn.Layer, input_spec: list[Any], stem: str | Path) -> None:
    with deployment_program(layer):
        function = paddle.jit.to_static(layer.forward, input_spec=input_spec, full_graph=True)
        concrete = function.concrete_program
        move_relu_before_concat(DeployProgram(concrete.main_program, None, [], []))
        paddle.jit.save(function, str(stem), input_spec=_used(input_spec, concrete))


def _used(input_spec: list[Any], concrete: Any) -> list[Any]:
    """The inputs that outputs depend on: ``im_shape`` means nothing to many detectors."""
    block = concrete.main_program.clone()._prune(targets=_outputs(concrete)).global_block()
    return [
        {key: spec for key, spec in part.items() if block.has_var(spec.name)}
        if isinstance(part, dict)
        else part
        for part in input_spec
    ]

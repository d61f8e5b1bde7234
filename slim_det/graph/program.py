"""A deployed detector that can be edited: its operators, its parameters, its inputs and outputs."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from slim_det.core.errors import ExportError
from slim_det.graph.dygraph import evaluation_mode
from slim_det.graph.tracing import deployment_program, save_detector

CONVOLUTIONS = ("conv2d", "depthwise_conv2d")
"""Operators that int8 engines have a kernel for."""

Names = Mapping[str, Sequence[str]]


def last_convolutions(ops: Sequence[Any]) -> list[Any]:
    """The convolutions that no other convolution follows, in order.

    Args:
        ops: Operators in the order of execution, of a program or of a trace.
    """
    found = []
    leading: set[str] = set()
    for op in reversed(ops):
        followed = not leading.isdisjoint(op.output_arg_names)
        if op.type in CONVOLUTIONS and not followed:
            found.append(op)
        if op.type in CONVOLUTIONS or followed:
            leading.update(op.input_arg_names)
    return found[::-1]


def head_convolutions(ops: Sequence[Any]) -> list[Any]:
    """The convolutions whose outputs are decoded to boxes, in order.

    Where a detector ends in non-maximum suppression, they are those that no other one follows;
    operators that suppress nothing have no head.

    Args:
        ops: Operators in the order of execution, of a program or of a trace.
    """
    return last_convolutions(ops) if any("nms" in op.type for op in ops) else []


class DeployProgram:
    """A program of the `.pdmodel` format with parameters of its own.

    Each method may be called in dygraph mode; Paddle is switched for as long as it needs.

    Args:
        program: Paddle's program.
        scope: Holds its parameters.
        feeds: Names of its inputs.
        fetches: Names of its outputs, in order.
    """

    def __init__(self, program: Any, scope: Any, feeds: list[str], fetches: list[str]) -> None:
        self.program = program
        self.scope = scope
        self.feeds = feeds
        self.fetches = fetches

    @classmethod
    @deployment_program()
    def load(cls, stem: str | Path) -> DeployProgram:
        """Read ``<stem>.pdmodel`` and ``<stem>.pdiparams``.

        Raises:
            ExportError: One of them is missing or damaged.
        """
        scope = paddle.static.Scope()
        executor = paddle.static.Executor(paddle.CPUPlace())
        try:
            with paddle.static.scope_guard(scope):
                program, feeds, fetches = paddle.static.load_inference_model(str(stem), executor)
        except (RuntimeError, ValueError, LookupError, OSError) as error:
            reason = " ".join(str(error).split())[-160:]
            raise ExportError(f"program '{stem}' cannot be loaded: {reason}") from error
        return cls(program, scope, list(feeds), [variable.name for variable in fetches])

    @deployment_program()
    def save(
        self,
        stem: str | Path,
        feeds: Sequence[str] | None = None,
        fetches: Sequence[str] | None = None,
    ) -> None:
        """Write what leads from inputs to outputs as ``<stem>.pdmodel`` and ``<stem>.pdiparams``.

        Args:
            stem: The files without their suffix.
            feeds: Inputs; by default those of the program that the outputs depend on.
            fetches: Outputs, any variables; by default those of the program.
        """
        program = self.program.clone()
        block = program.global_block()
        fetches = fetches or self.fetches
        if feeds is None:
            needed = self._needed(fetches)
            feeds = [name for name in self.feeds if name in needed]
        with paddle.static.scope_guard(self.scope):
            paddle.static.save_inference_model(
                str(stem),
                [block.var(name) for name in feeds],
                [block.var(name) for name in fetches],
                paddle.static.Executor(paddle.CPUPlace()),
                program=program,
            )

    @deployment_program()
    def copy(self) -> DeployProgram:
        """The same program with parameters of its own, to be edited apart."""
        made = DeployProgram(
            self.program.clone(), paddle.static.Scope(), list(self.feeds), list(self.fetches)
        )
        for name in self.parameters:
            made.set_value(name, self.value(name))
        return made

    @property
    def block(self) -> Any:
        """Paddle's block of operators (``ops``) and variables (``vars``)."""
        return self.program.global_block()

    @property
    def parameters(self) -> list[str]:
        """Names of everything that is stored in the file of parameters."""
        return [
            variable.name
            for variable in self.program.list_vars()
            if variable.persistable and variable.name not in ("feed", "fetch")
        ]

    @property
    def raw_outputs(self) -> list[str]:
        """What the head's convolutions give, with bias; none where those are the outputs."""
        found = [self._with_bias(op) for op in head_convolutions(self.block.ops)]
        return [name for name in found if name not in self.fetches]

    def value(self, name: str) -> np.ndarray:
        """A copy of a parameter."""
        return np.array(self.scope.find_var(name).get_tensor())

    @deployment_program()
    def set_value(self, name: str, array: np.ndarray) -> None:
        """Give a parameter a value; its type and shape follow, and it is made where missing."""
        block = self.block
        known = block.vars.get(name)
        if known is None or _signature(known) != (str(array.dtype), array.shape):
            if known is not None:
                block._remove_var(name)
            block.create_var(
                name=name,
                shape=list(array.shape),
                dtype=str(array.dtype),
                persistable=True,
                stop_gradient=True,
            )
        self.scope.var(name).get_tensor().set(np.ascontiguousarray(array), paddle.CPUPlace())

    @deployment_program()
    def insert(
        self, index: int, type: str, inputs: Names, outputs: Names, attrs: Mapping[str, Any]
    ) -> None:
        """Put an operator before the one at ``index`` of ``block.ops``.

        Args:
            index: Its place.
            type: Paddle's operator name.
            inputs: Slot name -> names of variables.
            outputs: Slot name -> names of variables.
            attrs: Attribute name -> value.
        """
        self.block._insert_op(
            index,
            type=type,
            inputs={slot: list(names) for slot, names in inputs.items()},
            outputs={slot: list(names) for slot, names in outputs.items()},
            attrs=dict(attrs),
        )

    @deployment_program()
    def new_variable(self, name: str, like: str) -> str:
        """Declare a float32 variable of the shape of another one; gives its name back."""
        if name not in self.block.vars:
            self.block.create_var(name=name, shape=self.block.var(like).shape, dtype="float32")
        return name

    def readers(self, name: str) -> list[Any]:
        """The operators that read a variable, in order; an output is read by ``fetch``."""
        return [op for op in self.block.ops if name in op.input_arg_names]

    def writer(self, name: str) -> Any:
        """The operator that gives a variable; None for inputs and parameters."""
        return next((op for op in self.block.ops if name in op.output_arg_names), None)

    @property
    def convolutions(self) -> list[Any]:
        """The convolutions, in order; those of `CONVOLUTIONS` only."""
        return [op for op in self.block.ops if op.type in CONVOLUTIONS]

    def stored_weight(self, convolution: Any) -> str:
        """Name of a convolution's stored weight, float or int8."""
        name: str = convolution.input("Filter")[0]
        writer = self.writer(name)
        return name if writer is None else str(writer.input("X")[0])

    def adds_parameter(self, op: Any) -> bool:
        """Whether an operator adds a bias, perhaps reshaped, and not another tensor."""
        if op.type != "elementwise_add":
            return False
        writer = self.writer(op.input("Y")[0])
        sources = op.input("Y") if writer is None else writer.input_arg_names
        return all(self.block.var(name).persistable for name in sources)

    def _with_bias(self, convolution: Any) -> str:
        """What a convolution gives, its bias added where it has one."""
        output: str = convolution.output("Output")[0]
        added = [op for op in self.readers(output) if self.adds_parameter(op)]
        return str(added[0].output("Out")[0]) if added else output

    def _needed(self, names: Sequence[str]) -> set[str]:
        """Every variable that these are computed from, themselves included."""
        found = set(names)
        for op in reversed(self.block.ops):
            if op.type not in ("feed", "fetch") and found & set(op.output_arg_names):
                found |= set(op.input_arg_names)
        return found


def trace_program(model: paddle.nn.Layer, image_size_hw: tuple[int, int]) -> DeployProgram:
    """A detector from image to boxes as a program; the parameters are copied.

    Args:
        model: A ppdet architecture; simulated integers are left out while it is traced.
        image_size_hw: Height and width in pixels.
    """
    with evaluation_mode(model), tempfile.TemporaryDirectory(prefix="slim_det_program_") as folder:
        stem = Path(folder) / "model"
        save_detector(model, image_size_hw, stem)
        return DeployProgram.load(stem)


def _signature(variable: Any) -> tuple[str, tuple[int, ...]]:
    """Type and shape of a variable, spelled as NumPy does."""
    name = str(variable.dtype).rpartition(".")[2].lower()
    names = {"fp32": "float32", "fp64": "float64"}
    return names.get(name, name), tuple(variable.shape)

"""Programs: operators in order, which of them read and write a variable, and how to edit them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.base.data_feeder import convert_dtype

from slim_det.core.errors import ExportError, engine_reason
from slim_det.graph.engine import Engine
from slim_det.graph.op import Op
from slim_det.graph.operators import declared, result_of, weight_of
from slim_det.graph.tracing import deployment_program

Names = Mapping[str, Sequence[str]]


_UNWRITTEN = {"swish": {"beta": 1.0}}
"""Operator -> attribute -> value, of those that Paddle leaves out and Paddle-Lite ends without."""


def last_convolutions(ops: Sequence[Op]) -> list[Op]:
    """The convolutions that no other convolution follows, in order of execution, as ``ops``."""
    found = []
    leading: set[str] = set()
    for op in reversed(ops):
        followed = not leading.isdisjoint(op.output_arg_names)
        if declared(op).int8_kernel and not followed:
            found.append(op)
        if declared(op).int8_kernel or followed:
            leading.update(op.input_arg_names)
    return found[::-1]


def head_convolutions(ops: Sequence[Op]) -> list[Op]:
    """The convolutions whose outputs are decoded to boxes, in order.

    In a detector that ends in non-maximum suppression, or in a comparison of a heatmap with its
    maximum around each place, the last convolutions; otherwise none.
    """
    pooled = {name for op in ops if op.type == "pool2d" for name in op.output_arg_names}
    finds_boxes = any(
        "nms" in op.type or (op.type == "equal" and not pooled.isdisjoint(op.input_arg_names))
        for op in ops
    )
    return last_convolutions(ops) if finds_boxes else []


def needed_for(ops: Sequence[Op], names: Iterable[str]) -> set[str]:
    """All variables that some variables are computed from by these operators, themselves included.

    Args:
        ops: Operators in order of execution.
        names: The variables.
    """
    found = set(names)
    for op in reversed(ops):
        if op.type not in ("feed", "fetch") and found & set(op.output_arg_names):
            found |= set(op.input_arg_names)
    return found


class Program:
    """What a traced model and a deployed program have in common: operators in execution order."""

    ops: list[Op]

    def is_parameter(self, name: str) -> bool:
        """Whether a variable is a parameter of the model."""
        raise NotImplementedError

    def readers(self, name: str) -> list[Op]:
        """The operators that read a variable, in order."""
        return self._readers.get(name, [])

    def writer(self, name: str) -> Op | None:
        """The operator that writes a variable; None for inputs and parameters."""
        return self._writers.get(name)

    def downstream(self, names: Iterable[str]) -> list[Op]:
        """The operators that depend on one of these variables, in order."""
        changed, found = set(names), []
        for op in self.ops:
            if op.type not in ("feed", "fetch") and not changed.isdisjoint(op.input_arg_names):
                found.append(op)
                changed.update(op.output_arg_names)
        return found

    @property
    def convolutions(self) -> list[Op]:
        """The convolutions that int8 engines have a kernel for, in order."""
        return [op for op in self.ops if declared(op).int8_kernel]

    def only_reader(self, name: str) -> Op | None:
        """The operator that alone reads a variable."""
        readers = self.readers(name)
        return readers[0] if len(readers) == 1 else None

    def bias_addition(self, op: Op) -> Op | None:
        """The operator that adds a bias, perhaps reshaped, to the result of another."""
        readers = self.readers(result_of(op))
        return next((reader for reader in readers if self._adds_bias(reader)), None)

    def with_bias(self, op: Op) -> str:
        """The result of an operator, with its bias added if it has one."""
        return result_of(self.bias_addition(op) or op)

    def normalization(self, op: Op) -> Op | None:
        """The batch norm that alone reads the result of an operator, with its bias."""
        readers = self.readers(self.with_bias(op))
        return readers[0] if [reader.type for reader in readers] == ["batch_norm"] else None

    def bias_parameter(self, op: Op) -> str:
        """The variable of the bias that is added to the result of an operator; '' for none."""
        addition = self.bias_addition(op)
        if addition is None:
            return ""
        name = addition.input(declared(addition).bias)
        writer = self.writer(name)
        return name if writer is None else writer.input("X")

    def _adds_bias(self, op: Op) -> bool:
        name = op.input(declared(op).bias)
        writer = self.writer(name)
        sources = [name] if writer is None else writer.input_arg_names
        return bool(name) and all(self.is_parameter(source) for source in sources)

    @cached_property
    def _readers(self) -> dict[str, list[Op]]:
        found: dict[str, list[Op]] = {}
        for op in self.ops:
            for name in dict.fromkeys(op.input_arg_names):
                found.setdefault(name, []).append(op)
        return found

    @cached_property
    def _writers(self) -> dict[str, Op]:
        found: dict[str, Op] = {}
        for op in self.ops:
            for name in op.output_arg_names:
                found.setdefault(name, op)
        return found


class DeployProgram(Program):
    """A program of the `.pdmodel` format that can be edited, with parameters of its own.

    Each method may be called in dygraph mode; Paddle is switched for as long as needed. Operators
    are edited only by these methods, so that ``ops`` stays equal to Paddle's own list.

    Args:
        program: Paddle's program.
        scope: Holds its parameters; None if none is read.
        feeds: Names of its inputs.
        fetches: Names of its outputs, in order.
    """

    def __init__(self, program: Any, scope: Any, feeds: list[str], fetches: list[str]) -> None:
        self.program = program
        self.scope = scope
        self.feeds = feeds
        self.fetches = fetches
        self.ops = [Op.read(op) for op in self.block.ops]

    @classmethod
    @deployment_program()
    def load(cls, stem: str | Path) -> DeployProgram:
        """Read ``<stem>.pdmodel`` and ``<stem>.pdiparams``.

        Raises:
            ExportError: A file is missing or damaged.
        """
        scope = paddle.static.Scope()
        executor = paddle.static.Executor(paddle.CPUPlace())
        try:
            with paddle.static.scope_guard(scope):
                program, feeds, fetches = paddle.static.load_inference_model(str(stem), executor)
        except (RuntimeError, ValueError, LookupError, OSError) as error:
            raise ExportError(
                f"program '{stem}' cannot be loaded: {engine_reason(error)}"
            ) from error
        loaded = cls(program, scope, list(feeds), [variable.name for variable in fetches])
        for op in loaded.ops:
            for name, value in _UNWRITTEN.get(op.type, {}).items():
                loaded.set_attribute(op, name, value)
        return loaded

    @deployment_program()
    def save(
        self,
        stem: str | Path,
        feeds: Sequence[str] | None = None,
        fetches: Sequence[str] | None = None,
    ) -> None:
        """Write the part between inputs and outputs as ``<stem>.pdmodel`` and ``<stem>.pdiparams``.

        Args:
            stem: The files without suffix.
            feeds: Inputs; by default those of the program that the outputs depend on.
            fetches: Outputs, any variables; by default those of the program.
        """
        block = self.block
        fetches = fetches or self.fetches
        if feeds is None:
            needed = needed_for(self.ops, fetches)
            feeds = [name for name in self.feeds if name in needed]
        with paddle.static.scope_guard(self.scope):
            paddle.static.save_inference_model(
                str(stem),
                [block.var(name) for name in feeds],
                [block.var(name) for name in fetches],
                paddle.static.Executor(paddle.CPUPlace()),
                program=self.program,
                clip_extra=False,  # which would drop those of _UNWRITTEN
            )

    def engine(
        self,
        feeds: Sequence[str] | None = None,
        fetches: Sequence[str] | None = None,
        folder: Path | None = None,
        **settings: Any,
    ) -> Engine:
        """Load the part between inputs and outputs (see `save`) into an `Engine` with settings."""
        return Engine.of(lambda stem: self.save(stem, feeds, fetches), folder, **settings)

    @deployment_program()
    def copy(self, share_parameters: bool = False) -> DeployProgram:
        """The same program, to be edited apart; its parameters are shared or copied."""
        scope = self.scope if share_parameters else paddle.static.Scope()
        made = DeployProgram(self.program.clone(), scope, list(self.feeds), list(self.fetches))
        for name in () if share_parameters else self.parameters:
            made.set_value(name, self.value(name))
        return made

    @property
    def block(self) -> Any:
        """Paddle's block of operators (``ops``) and variables (``vars``)."""
        return self.program.global_block()

    @property
    def parameters(self) -> list[str]:
        """Names of all variables that are stored in the parameter file."""
        return [
            variable.name
            for variable in self.program.list_vars()
            if variable.persistable and variable.name not in ("feed", "fetch")
        ]

    @property
    def raw_outputs(self) -> list[str]:
        """Results of the head's convolutions, with bias and batch norm, unless they are outputs."""
        heads = head_convolutions(self.ops)
        norms = [self.normalization(op) for op in heads]
        found = [result_of(n) if n else self.with_bias(op) for op, n in zip(heads, norms)]
        return [name for name in found if name not in self.fetches]

    def value(self, name: str) -> np.ndarray:
        """A copy of a parameter."""
        return np.array(self.scope.find_var(name).get_tensor())

    @deployment_program()
    def set_value(self, name: str, array: np.ndarray) -> None:
        """Set a parameter; its type and shape follow, and it is created if missing."""
        block, kind = self.block, (str(array.dtype), array.shape)
        known = block.vars.get(name)
        if known is None or (convert_dtype(known.dtype), tuple(known.shape)) != kind:
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
        """Insert an operator before ``ops[index]``; the rest is as in `Op`."""
        raw = self.block._insert_op(
            index,
            type=type,
            inputs={slot: list(names) for slot, names in inputs.items()},
            outputs={slot: list(names) for slot, names in outputs.items()},
            attrs=dict(attrs),
        )
        self.ops.insert(index, Op.read(raw))
        self._forget_links()

    @deployment_program()
    def remove(self, op: Op) -> int:
        """Remove an operator; returns its former index."""
        index = self.ops.index(op)
        self.block._remove_op(index)
        del self.ops[index]
        self._forget_links()
        return index

    def rename_input(self, op: Op, old: str, new: str) -> None:
        """Let an operator read another variable."""
        op.raw._rename_input(old, new)
        self._renamed(op.inputs, old, new)

    def rename_output(self, op: Op, old: str, new: str) -> None:
        """Let an operator write another variable."""
        op.raw._rename_output(old, new)
        self._renamed(op.outputs, old, new)

    def set_attribute(self, op: Op, name: str, value: Any) -> None:
        """Set an attribute of an operator."""
        op.raw._set_attr(name, value)
        op.attrs[name] = value

    @deployment_program()
    def new_variable(self, name: str, like: str) -> str:
        """Declare a float32 variable with the shape of another; returns its name."""
        if name not in self.block.vars:
            self.block.create_var(name=name, shape=self.block.var(like).shape, dtype="float32")
        return name

    def is_parameter(self, name: str) -> bool:
        """Whether a variable is stored in the parameter file."""
        return bool(self.block.var(name).persistable)

    def stored_weight(self, convolution: Op) -> str:
        """Name of a convolution's stored weight, float or int8."""
        name = weight_of(convolution)
        writer = self.writer(name)
        return name if writer is None else writer.input("X")

    def _renamed(self, slots: dict[str, list[str]], old: str, new: str) -> None:
        for names in slots.values():
            names[:] = [new if name == old else name for name in names]
        self._forget_links()

    def _forget_links(self) -> None:
        """Look up readers and writers again after an edit."""
        for name in ("_readers", "_writers"):
            self.__dict__.pop(name, None)

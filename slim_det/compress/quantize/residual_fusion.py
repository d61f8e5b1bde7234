"""Tensors that an addition reads as integers, as in oneDNN.

In the engine a residual addition reads the same integers as the next convolution in two cases: a
convolution has written them, together with its activation; or the addition is part of a
convolution, the last of its branch. Other additions read floats. The simulation rounds such a
tensor for all its readers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import paddle
from paddle import Tensor

from slim_det.compress.quantize.layers import QuantConv2D
from slim_det.compress.quantize.quantizers import FixedRange
from slim_det.compress.quantize.record import RoundedOutput
from slim_det.graph.activations import ActivationRecorder
from slim_det.graph.op import Op
from slim_det.graph.operators import data_of, declared, result_of
from slim_det.graph.trace import Trace


def rounded_tensors(
    trace: Trace, inputs: Mapping[str, str], outputs: Mapping[str, str]
) -> dict[str, tuple[list[str], list[str]]]:
    """Find the tensors that additions read as integers.

    Args:
        trace: The operators of a float model.
        inputs: Module path of a quantized convolution -> variable of its input.
        outputs: Variable -> module path of the quantized convolution with this output.

    Returns:
        Variable -> module paths of the quantized convolutions that read it, and of those that must
        be quantized for it. A tensor that another operator reads in float is left out.
    """
    return _ResidualFusion(trace, inputs, outputs).rounded()


def giving_modules(
    model: paddle.nn.Layer, run: Callable[[], Any], convolutions: Mapping[str, paddle.nn.Layer]
) -> dict[str, str]:
    """Find the modules whose outputs are the inputs of convolutions.

    Args:
        model: The model.
        run: Runs it once.
        convolutions: Name -> convolution of the model.

    Returns:
        Name -> module path of the innermost such module; convolutions without one are left out.
    """
    given: dict[int, str] = {}
    found: dict[str, str] = {}

    def note(name: str, received: Any, output: Any) -> Tensor | None:
        if not isinstance(output, Tensor):
            return None
        given.setdefault(id(output), name)
        return output  # kept, so that no other tensor is given its id

    def look(name: str, received: Tensor, output: Any) -> None:
        if id(received) in given:
            found[name] = given[id(received)]

    makers = ActivationRecorder(dict(model.named_sublayers()), note)
    readers = ActivationRecorder(convolutions, look)
    with makers.recording(), readers.recording(), paddle.no_grad():
        run()
    return found


class OutputRounding:
    """A forward hook that rounds a module's output for all its readers.

    It does nothing while a program is traced, while one of the convolutions is in float, and for
    integers of Paddle-Lite, whose additions read floats. See `RoundedOutput` for its arguments.
    """

    def __init__(self, readers: list[paddle.nn.Layer], producers: list[paddle.nn.Layer]) -> None:
        self._readers = readers
        self._producers = producers

    def __call__(self, layer: paddle.nn.Layer, received: Any, output: Tensor) -> Tensor | None:
        """Round ``output`` [N, C, H, W]; None leaves it as it is."""
        reader = next((one for one in self._readers if isinstance(one, QuantConv2D)), None)
        if reader is None or not all(isinstance(one, QuantConv2D) for one in self._producers):
            return None
        if not paddle.in_dynamic_mode() or isinstance(reader.activation, FixedRange):
            return None
        rounded: Tensor = reader.activation(output)
        reader.take_rounded(rounded)
        return rounded


def round_outputs(
    modules: Mapping[str, paddle.nn.Layer],
    convolutions: Mapping[str, paddle.nn.Layer],
    rounded: Iterable[RoundedOutput],
) -> None:
    """Round outputs of modules that additions read as integers.

    Args:
        modules: Module path -> module.
        convolutions: Module path of a record -> convolution.
        rounded: From the model's record.
    """
    for one in rounded:
        readers, producers = (
            [convolutions[name] for name in names] for names in (one.readers, one.producers)
        )
        modules[one.module].register_forward_post_hook(OutputRounding(readers, producers))


class _ResidualFusion:
    def __init__(self, trace: Trace, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> None:
        self._trace = trace
        self._outputs = outputs
        self._read_by: dict[str, list[str]] = {}
        for path, name in inputs.items():
            self._read_by.setdefault(name, []).append(path)

    def rounded(self) -> dict[str, tuple[list[str], list[str]]]:
        found = {}
        for name, paths in self._read_by.items():
            readers = self._trace.readers(name)
            additions = [op for op in readers if self._adds(op)]
            if not additions:
                continue
            producers = self._made_in_integers(name)
            if not producers:
                fused = [self._fused(op) for op in additions]
                others = [op for op in readers if self._reads_floats(op)]
                if others or not all(pair and pair[1] == name for pair in fused):
                    continue
                producers = [pair[0] for pair in fused if pair]
            found[name] = (paths, producers)
        return found

    def _adds(self, op: Op) -> bool:
        """Whether an operator adds two tensors of the model, and not a parameter to one."""
        return op.type == "elementwise_add" and not any(
            self._trace.is_parameter(name) for name in op.input_arg_names
        )

    def _reads_floats(self, op: Op) -> bool:
        is_quantized = data_of(op) in self._read_by and result_of(op) in self._outputs
        return not (is_quantized or self._adds(op) or declared(op).reads_integers)

    def _made_in_integers(self, name: str) -> list[str]:
        """The convolution whose kernel writes a tensor as integers; none if it writes floats."""
        op = self._trace.writer(name)
        if op is not None and declared(op).fused_int8:
            name = data_of(op)
            if len(self._trace.readers(name)) != 1:
                return []
        convolution = self._convolution(name)
        if convolution:
            return [convolution]
        op = self._trace.writer(name)
        fused = self._fused(op) if op is not None and self._adds(op) else None
        return [fused[0]] if fused else []

    def _fused(self, addition: Op) -> tuple[str, str] | None:
        """The convolution that an addition becomes part of, and its other operand."""
        left, right = addition.input("X"), addition.input("Y")
        for name, other in ((left, right), (right, left)):
            convolution = self._convolution(name)
            alone = len(self._trace.readers(name)) == 1
            if convolution and alone and other in self._read_by and not self._convolution(other):
                return convolution, other
        return None

    def _convolution(self, name: str) -> str:
        """The quantized convolution that gives a tensor, with only batch norm or bias in between.

        A bias that is reshaped first does not count.
        """
        while name not in self._outputs:
            op = self._trace.writer(name)
            biased = op is not None and op.type == "elementwise_add" and not self._adds(op)
            if op is None or not (biased or op.type == "batch_norm"):
                return ""
            name = op.input("X")
            if len(self._trace.readers(name)) != 1:
                return ""
        return self._outputs[name]

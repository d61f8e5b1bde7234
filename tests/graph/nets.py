"""Plain nets as deploy programs, and engines of programs that were never published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle.nn import Conv2D, Sequential
from paddle.static import InputSpec

from slim_det.compress.quantize.model import program_ranges, quantize_model
from slim_det.compress.quantize.record import QuantLayer, QuantRecord
from slim_det.compress.quantize.settings import QuantSettings
from slim_det.graph.engine import Engine
from slim_det.graph.folding import fold_batch_norm
from slim_det.graph.integers import LayerRanges
from slim_det.graph.program import DeployProgram
from slim_det.graph.tracing import deployment_program
from tests.support import fill_with

SHAPE = (1, 2, 5, 5)

# Input range 12.7: a step of 0.1, clipped at 12.7.
PIXELS = np.array([[3.14, 20.0], [-0.26, 1.0]], np.float32).reshape(1, 2, 1, 2)


def one_convolution(
    weight: Any, input_range: float, kernel: int = 1, **quantization: Any
) -> paddle.nn.Layer:
    """A quantized convolution without bias or batch norm."""
    values = np.array(weight, np.float32)
    values = values.reshape(len(values), -1, kernel, kernel)
    net = Sequential(Conv2D(values.shape[1], len(values), kernel, bias_attr=False))
    fill_with(net, {"0.weight": values})
    record = QuantRecord(QuantSettings(**quantization), [QuantLayer("0")], {})
    quantize_model(net, record, {"0": input_range})
    net.eval()
    return net


def program_of(layer: paddle.nn.Layer, shape: tuple[int, ...], folder: Path) -> DeployProgram:
    """A layer that takes one tensor `x` of this shape, in evaluation mode."""
    return traced(layer, InputSpec(list(shape), "float32", "x"), folder)


def traced(layer: paddle.nn.Layer, spec: Any, folder: Path) -> DeployProgram:
    """A layer with one argument."""
    layer.eval()
    with deployment_program():
        function = paddle.jit.to_static(layer.forward, input_spec=[spec], full_graph=True)
        paddle.jit.save(function, str(folder / "traced"))
    return DeployProgram.load(folder / "traced")


def folded_with_scales(
    layer: paddle.nn.Layer, shape: tuple[int, ...], folder: Path
) -> tuple[DeployProgram, dict[str, LayerRanges]]:
    """The program of a quantized layer, batch norm folded, and its scales."""
    program = program_of(layer, shape, folder)
    fold_batch_norm(program)
    return program, program_ranges(layer)


def engine_of(program: DeployProgram, folder: Path, **settings: Any) -> Engine:
    """An engine on one thread."""
    return program.engine(folder=folder, threads=1, **settings)


def run_one(program: DeployProgram, x: np.ndarray, folder: Path, **settings: Any) -> np.ndarray:
    """The only output of a program with one input."""
    (output,) = engine_of(program, folder, **settings)({"x": x}).values()
    return output


def operators(program: DeployProgram) -> list[str]:
    """Types of its operators, in order."""
    return [op.type for op in program.block.ops if op.type not in ("feed", "fetch")]


def run_saved(path: str, x: np.ndarray) -> list[np.ndarray]:
    """All outputs of a saved program, run as it is.

    Paddle Inference's own rewriting is off: with oneDNN it fuses a linear layer with the
    activation behind it, even if the layer has other readers.
    """
    from paddle import inference

    config = inference.Config(f"{path}.pdmodel", f"{path}.pdiparams")
    config.disable_glog_info()
    config.switch_ir_optim(False)
    predictor = inference.create_predictor(config)
    predictor.get_input_handle(predictor.get_input_names()[0]).copy_from_cpu(x)
    predictor.run()
    names = predictor.get_output_names()
    return [predictor.get_output_handle(name).copy_to_cpu() for name in names]

"""The engines that a detector runs in, as functions from preprocessed images to outputs."""

from __future__ import annotations

import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle

from slim_det.compress.quantize.model import quantized_layers, signed_inputs
from slim_det.deploy.lite.convert import RUNNER, Converter, run_quietly
from slim_det.deploy.predictor import network_engine
from slim_det.evaluate.detections import Detections, parse_arrays, parse_detections
from slim_det.graph.activations import ActivationRecorder, output_array
from slim_det.graph.operators import weight_of
from slim_det.graph.program import DeployProgram, head_convolutions
from slim_det.graph.trace import trace_detector
from slim_det.graph.tracing import deployment_program
from slim_det.verify.stages import Found

Batch = dict[str, np.ndarray]
"""One image: ``image`` float32 [1, 3, H, W], ``im_shape`` and ``scale_factor`` float32 [1, 2]."""

Runner = Callable[[Sequence[Batch]], "list[Found]"]

NOISE_STEP = 2e-6
"""Typical relative difference between float32 sums computed in different orders."""

_Calls = list[tuple[str, int]]
_heads: weakref.WeakKeyDictionary[paddle.nn.Layer, _Calls] = weakref.WeakKeyDictionary()


def dygraph_runner(model: paddle.nn.Layer, program: DeployProgram | None = None) -> Runner:
    """The model itself, in evaluation mode.

    Args:
        model: The model.
        program: Its program, whose raw outputs are compared; by default those of a trace, which
            also lists what a program only runs under a condition, such as heads of masks.
    """
    model.eval()

    def run(batches: Sequence[Batch]) -> list[Found]:
        found: list[Found] = []
        if not batches:
            return found
        height, width = batches[0]["image"].shape[2:]
        calls = _head_calls(model, (height, width), program)
        layers = dict(model.named_sublayers())
        recorder = ActivationRecorder({path: layers[path] for path, _ in calls}, output_array)
        with paddle.no_grad():
            for batch in batches:
                with recorder.recording() as kept:
                    outputs = model({n: paddle.to_tensor(value) for n, value in batch.items()})
                    raw = [kept[path][number] for path, number in calls]
                found.append(Found(raw, *parse_detections(outputs)))
        return found

    return run


def signed_runner(model: paddle.nn.Layer, program: DeployProgram | None = None) -> Runner:
    """A quantized model that rounds every input to signed integers; else as `dygraph_runner`."""
    runner = dygraph_runner(model, program)

    def run(batches: Sequence[Batch]) -> list[Found]:
        with signed_inputs(model):
            return runner(batches)

    return run


def noisy_runner(model: paddle.nn.Layer, runner: Runner) -> Runner:
    """A runner of a quantized model, with random noise on every quantized layer's input.

    The noise is `NOISE_STEP` of the value. Values close to a rounding boundary then round the other
    way, and the difference propagates through the following layers. The change of the outputs is
    the model's rounding noise, which any two engines may differ by.

    Args:
        model: The model.
        runner: What is run: `dygraph_runner` or `signed_runner` of it.
    """

    def run(batches: Sequence[Batch]) -> list[Found]:
        generator = np.random.default_rng(0)

        def perturb(layer: Any, inputs: tuple[paddle.Tensor]) -> tuple[paddle.Tensor] | None:
            if not paddle.in_dynamic_mode():  # traced to find the head's layers
                return None
            changes = generator.uniform(-NOISE_STEP, NOISE_STEP, inputs[0].shape)
            return (inputs[0] * (1.0 + paddle.to_tensor(changes.astype(np.float32))),)

        layers = quantized_layers(model).values()
        handles = [layer.register_forward_pre_hook(perturb) for layer in layers]
        try:
            return runner(batches)
        finally:
            for handle in handles:
                handle.remove()

    return run


def program_runner(program: DeployProgram) -> Runner:
    """A program run operator by operator, without oneDNN or fused kernels."""
    raw = program.raw_outputs
    names = list(dict.fromkeys([*raw, *program.fetches]))

    def run(batches: Sequence[Batch]) -> list[Found]:
        found = []
        with deployment_program(), paddle.static.scope_guard(program.scope):
            executor = paddle.static.Executor(paddle.CPUPlace())
            for batch in batches:
                feed = {name: batch[name] for name in program.feeds}
                values = executor.run(program.program, feed, names, return_numpy=False)
                found.append(_found(values, names, raw))
        return found

    return run


def engine_runner(
    boxes: Callable[[Batch], list[Detections]], program: DeployProgram, int8: bool
) -> Runner:
    """Paddle Inference, as in deployment.

    Args:
        boxes: Predictor of the artifact.
        program: Program of the artifact; a separate engine computes its raw outputs.
        int8: Whether to use int8 kernels.
    """
    heads = network_engine(program, int8)

    def run(batches: Sequence[Batch]) -> list[Found]:
        return [
            Found(list(heads({"image": batch["image"]}).values()) if heads else [], *boxes(batch))
            for batch in batches
        ]

    return run


def lite_runner(program: DeployProgram, stem: Path) -> Runner:
    """Paddle-Lite on x86, in a separate process.

    Args:
        program: Program to convert and run.
        stem: Path for its files, without suffix, in an existing folder.

    Raises:
        ExportError: The program cannot be converted.
    """
    raw = program.raw_outputs
    names = list(dict.fromkeys([*raw, *program.fetches]))
    program.save(stem, program.feeds, names)
    nb_stem = stem.with_name(stem.name + "_x86")
    Converter(sys.executable, True).convert(stem, nb_stem, "x86", False)

    def run(batches: Sequence[Batch]) -> list[Found]:
        with tempfile.TemporaryDirectory(dir=stem.parent) as folder:
            inputs, outputs = Path(folder) / "in.npz", Path(folder) / "out.npz"
            arrays = {f"{i}/{k}": v for i, b in enumerate(batches) for k, v in b.items()}
            np.savez(inputs, **arrays)
            command = [sys.executable, str(RUNNER), "run", f"{nb_stem}.nb"]
            run_quietly([*command, str(inputs), str(outputs)], "Paddle-Lite")
            with np.load(outputs) as kept:
                return [
                    _found([kept[f"{i}/{place}"] for place in range(len(names))], names, raw)
                    for i in range(len(batches))
                ]

    return run


def surrogate_runner(program: DeployProgram) -> Runner:
    """Paddle Inference without oneDNN, for a program in Paddle-Lite's form."""
    raw = program.raw_outputs
    names = list(dict.fromkeys([*raw, *program.fetches]))
    engine = program.engine(program.feeds, names, onednn=False)
    return lambda batches: [_found(list(engine(batch).values()), names, raw) for batch in batches]


def _head_calls(
    model: paddle.nn.Layer, image_size_hw: tuple[int, int], program: DeployProgram | None
) -> _Calls:
    """The convolutions that boxes are decoded from, in the order of `raw_outputs`.

    Several runners share a model, which is traced once: its head is the same at every size.

    Returns:
        Module path, and which of its calls in a forward pass: a head that several scales share is
        called for each of them.
    """
    if model not in _heads:
        trace = trace_detector(model, image_size_hw)
        heads, seen, calls = head_convolutions(trace.ops), Counter[str](), []
        if program is not None:
            known = {program.stored_weight(op) for op in head_convolutions(program.ops)}
            heads = [op for op in trace.convolutions if weight_of(op) in known]
        for op in trace.convolutions:
            norm = trace.normalization(op)
            last = norm.input("Scale") if norm else weight_of(op)
            path = trace.parameters[last].rpartition(".")[0]
            if op in heads:
                calls.append((path, seen[path]))
            seen[path] += 1
        _heads[model] = calls
    return _heads[model]


def _array(value: Any) -> np.ndarray:
    """An array, or a tensor of Paddle's executor, which has no memory to copy if it is empty."""
    if not isinstance(value, np.ndarray) and 0 in value.shape():
        return np.zeros(value.shape(), np.float32)
    return np.asarray(value)


def _found(values: Sequence[Any], names: list[str], raw: list[str]) -> Found:
    """Group the outputs for one image into raw outputs and detections."""
    arrays = dict(zip(names, map(_array, values)))
    others = [array for name, array in arrays.items() if name not in raw]
    return Found([arrays[name] for name in raw], *parse_arrays(others, "the program"))

"""Runs only the part of a detector that a cut changes, through Paddle Inference.

Removed channels matter through the layers that read them and nothing else, so forcing them to
zero where they are read is the cut itself: the same sums without the removed terms. Everything
that does not lie downstream of such a reader is the same for every candidate. A *partial
program* is what lies downstream; its *cached activations* are the tensors that enter it, kept from
one complete run. Masks are inputs of it, so it is loaded once for all ratios of a group.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from paddle import inference

from slim_det.core.errors import ExportError, LayerError
from slim_det.evaluate.image_matches import boxes_by_image
from slim_det.graph.engine import engine_config
from slim_det.graph.tracing import deployment_program, save_detector
from slim_det.planning.sensitivity.cuts import Cut, Target, mask_name

IMAGE_INPUTS = ("image", "im_shape", "scale_factor")
_PROGRAM = "program"
_READER_SLOTS = {
    "conv2d": ("Filter", "Input"),
    "depthwise_conv2d": ("Filter", "Input"),
    "deformable_conv": ("Filter", "Input"),
    "deformable_conv_v1": ("Filter", "Input"),
    "conv2d_transpose": ("Filter", "Input"),
    "matmul_v2": ("Y", "X"),
    "mul": ("Y", "X"),
}
"""Operator -> slots of its weight and of the tensor whose channels that weight reads."""

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class PartialProgram:
    """The part of a program downstream of some readers.

    Attributes:
        readers: Weights (names in the program) whose input channels are masked.
        operators: Places of its operators in the program.
        cached: Variables that enter it.
    """

    readers: tuple[str, ...]
    operators: tuple[int, ...]
    cached: tuple[str, ...]


def save_program(
    model: paddle.nn.Layer, image_size_hw: tuple[int, int], folder: str | Path
) -> None:
    """Write a detector, from image to boxes, as a program that `DetectorProgram` can cut.

    Args:
        model: A ppdet architecture with its weights.
        image_size_hw: Height and width in pixels.
        folder: An existing folder.
    """
    model.eval()
    save_detector(model, image_size_hw, Path(folder) / _PROGRAM)


class DetectorProgram:
    """A saved detector that can be run from the image, or from cached activations.

    Args:
        folder: Where `save_program` wrote it; the parts are written there too.
        threads: CPU threads of every run.
    """

    def __init__(self, folder: str | Path, threads: int) -> None:
        self.folder, self._threads = Path(folder), threads
        self._scope = paddle.static.Scope()
        with deployment_program(), paddle.static.scope_guard(self._scope):
            self._executor = paddle.static.Executor(paddle.CPUPlace())
            self._program, _, fetches = paddle.static.load_inference_model(
                str(self.folder / _PROGRAM), self._executor
            )
        self.outputs = tuple(var.name for var in fetches)
        if len(self.outputs) != 2:
            raise ExportError(
                f"the detector gives {len(self.outputs)} results; expected boxes and their counts"
            )
        self._block = self._program.global_block()
        self._from_image = self._depend_on(set(IMAGE_INPUTS))

    def partial(self, readers: Iterable[str]) -> PartialProgram:
        """What has to be run again when the input channels of ``readers`` are masked.

        Args:
            readers: Names of weights in the program.

        Raises:
            LayerError: A weight is read by an operator whose channels cannot be masked.
        """
        readers = tuple(readers)
        changed: set[str] = set()
        places = []
        for place, op in enumerate(self._block.ops):
            names = set(op.input_arg_names)
            if op.type in ("feed", "fetch") or not names & (changed | set(readers)):
                continue
            if names & set(readers) and op.type not in _READER_SLOTS:
                raise LayerError(f"channels read by operator '{op.type}' cannot be masked")
            places.append(place)
            changed |= set(op.output_arg_names)
        entering = [
            name
            for place in places
            for name in self._block.ops[place].input_arg_names
            if name in self._from_image and name not in changed
        ]
        return PartialProgram(readers, tuple(places), tuple(dict.fromkeys(entering)))

    def cached_variables(self, targets: Iterable[Target]) -> tuple[str, ...]:
        """Every variable that enters the tail of one of the targets."""
        names = [name for target in targets for name in self.partial(target.readers).cached]
        return tuple(dict.fromkeys(names))

    def run_cuts(
        self, target: Target, cached_activations: Sequence[Arrays]
    ) -> Iterator[tuple[Cut, list[np.ndarray]]]:
        """Run the tail of a group once for every cut.

        Args:
            target: The group with cuts that remove something.
            cached_activations: For every batch, at least what enters the partial program.

        Yields:
            The cut and the boxes of every image of every batch.
        """
        runner = self.runner(self.partial(target.readers), "partial")
        for cut in target.cuts:
            runs = (runner({**cached, **cut.masks}) for cached in cached_activations)
            yield cut, [boxes for outputs in runs for boxes in self.boxes(outputs)]

    def whole(self, cached: Iterable[str] = ()) -> Runner:
        """A runner from image to boxes that also gives cached variables."""
        names = [name for name in dict.fromkeys(cached) if name not in IMAGE_INPUTS]
        return self._runner("whole", self._program, IMAGE_INPUTS, [*self.outputs, *names])

    def runner(self, partial: PartialProgram, name: str) -> Runner:
        """A runner from cached activations and masks to boxes.

        Its inputs are the cached activations and, for every reader, `mask_name(reader)`: float32
        [1, C, 1, 1] for a convolution that reads C channels, [C] for a matrix product.
        """
        with deployment_program():
            program = self._program.clone()
            block = program.global_block()
            masks = []
            for place in reversed(partial.operators):
                op = block.ops[place]
                weight_slot, input_slot = _READER_SLOTS.get(op.type, ("", ""))
                if weight_slot and op.input(weight_slot)[0] in partial.readers:
                    masks.append(_mask_input(block, place, op, weight_slot, input_slot))
        inputs = [*partial.cached, *dict.fromkeys(masks)]
        return self._runner(name, program, inputs, self.outputs)

    def bytes_an_image(self, cached: Iterable[str]) -> int:
        """Bytes that cached variables take for one image."""
        shapes = (self._block.vars[name].shape[1:] for name in cached)
        return sum(4 * abs(int(np.prod(shape))) for shape in shapes)

    def boxes(self, outputs: Arrays) -> list[np.ndarray]:
        """The boxes of each image of a run, float32 [n, 6]: class, score, xyxy in pixels."""
        boxes, counts = (outputs[name] for name in self.outputs)
        return boxes_by_image({"bbox": boxes, "bbox_num": counts})

    def _runner(
        self, name: str, program: Any, inputs: Sequence[str], outputs: Sequence[str]
    ) -> Runner:
        # Several processes may cut the same program at a time.
        path, block = self.folder / f"{name}-{os.getpid()}", program.global_block()
        with deployment_program(), paddle.static.scope_guard(self._scope):
            paddle.static.save_inference_model(
                str(path),
                [block.vars[name] for name in inputs],
                [block.vars[name] for name in outputs],
                self._executor,
                program=program,
            )
        runner = Runner(path, outputs, self._threads)
        for suffix in (".pdmodel", ".pdiparams"):
            path.with_suffix(suffix).unlink()
        return runner

    def _depend_on(self, names: set[str]) -> set[str]:
        """Variables that are computed from the given ones; the others are constants."""
        found = set(names)
        for op in self._block.ops:
            if op.type not in ("feed", "fetch") and found & set(op.input_arg_names):
                found |= set(op.output_arg_names)
        return found


class Runner:
    """One loaded program with the engine settings of an exported detector.

    Args:
        path: The program's files without their suffix; not needed after loading.
        outputs: Names of its results, in the order in which they were asked for.
        threads: CPU threads.
    """

    def __init__(self, path: Path, outputs: Sequence[str], threads: int) -> None:
        config = engine_config(f"{path}.pdmodel", f"{path}.pdiparams", threads)
        self._predictor = inference.create_predictor(config)
        self._outputs = tuple(outputs)

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Run once.

        Args:
            inputs: At least the inputs of the program, by name.

        Returns:
            Its results, by the names that were asked for.
        """
        predictor = self._predictor
        for name in predictor.get_input_names():
            predictor.get_input_handle(name).copy_from_cpu(np.ascontiguousarray(inputs[name]))
        predictor.run()
        handles = [predictor.get_output_handle(name) for name in predictor.get_output_names()]
        return {name: handle.copy_to_cpu() for name, handle in zip(self._outputs, handles)}


def _mask_input(block: Any, place: int, op: Any, weight_slot: str, input_slot: str) -> str:
    """Multiply what an operator reads by a new input; returns that input's name."""
    weight, source = op.input(weight_slot)[0], op.input(input_slot)[0]
    ndim, name = len(block.vars[weight].shape), mask_name(weight)
    if name not in block.vars:
        shape = [1, -1, 1, 1] if ndim == 4 else [-1]
        block.create_var(name=name, shape=shape, dtype="float32", is_data=True)
    masked = f"{source}.{name}"
    if masked not in block.vars:
        block.create_var(name=masked, shape=block.vars[source].shape, dtype="float32")
    op._rename_input(source, masked)
    block._insert_op(
        place,
        type="elementwise_mul",
        inputs={"X": [source], "Y": [name]},
        outputs={"Out": [masked]},
        attrs={"axis": -1},
    )
    return name

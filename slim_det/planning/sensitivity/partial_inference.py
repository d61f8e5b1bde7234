"""Runs only the part of a detector that a cut changes, through Paddle Inference.

Removed channels matter only to the layers that read them, so masking them with zeros where they
are read is the cut itself: the same sums without the removed terms. Only what lies downstream of
these readers differs between candidates: the *partial program*. Its *cached activations* are the
tensors that enter it, kept from one complete run. Masks are inputs of it, so it is loaded once for
all ratios of a group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import paddle

from slim_det.core.errors import ExportError, LayerError
from slim_det.evaluate.detections import Detections, parse_arrays
from slim_det.graph.engine import Engine
from slim_det.graph.op import Op
from slim_det.graph.operators import data_of, weight_of
from slim_det.graph.program import DeployProgram, needed_for
from slim_det.graph.trace import save_detector
from slim_det.graph.tracing import deployment_program
from slim_det.planning.sensitivity.cuts import Cut, Target, mask_name

IMAGE_INPUTS = ("image", "im_shape", "scale_factor")
_PROGRAM = "program"
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class PartialProgram:
    """The part of a program downstream of some readers.

    Attributes:
        readers: Parameters (names in the program) that change, or whose input channels are masked.
        operators: What it runs, in order.
        cached: Variables that enter it.
    """

    readers: tuple[str, ...]
    operators: tuple[Op, ...]
    cached: tuple[str, ...]


def save_program(
    model: paddle.nn.Layer, image_size_hw: tuple[int, int], folder: str | Path
) -> None:
    """Write a detector, from image to boxes, into an existing folder for `DetectorProgram`."""
    model.eval()
    save_detector(model, image_size_hw, Path(folder) / _PROGRAM)


class DetectorProgram:
    """A saved detector that can be run from the image, or from cached activations.

    Args:
        folder: Where `save_program` wrote it; the parts are written there too.
        threads: CPU threads of every run.
        program: The detector, if it is loaded already.
    """

    def __init__(
        self, folder: str | Path, threads: int, program: DeployProgram | None = None
    ) -> None:
        self.folder, self._threads = Path(folder), threads
        self.program = program or DeployProgram.load(self.folder / _PROGRAM)
        self.outputs = self.program.fetches
        if len(self.outputs) != 2:
            raise ExportError(
                f"the detector gives {len(self.outputs)} results; expected boxes and their counts"
            )
        # What does not depend on the image is a constant of the program.
        self._from_image = {*IMAGE_INPUTS, *_results(self.program.downstream(IMAGE_INPUTS))}

    def partial(self, readers: Iterable[str]) -> PartialProgram:
        """What has to be run again when the input channels of some weights are masked.

        Raises:
            LayerError: A weight is read by an operator whose channels cannot be masked.
        """
        partial = self.behind(readers)
        for op in partial.operators:
            if not weight_of(op) and not set(partial.readers).isdisjoint(op.input_arg_names):
                raise LayerError(f"channels read by operator '{op.type}' cannot be masked")
        return partial

    def behind(self, parameters: Iterable[str]) -> PartialProgram:
        """What has to be run again when some parameters change."""
        parameters = tuple(parameters)
        operators = self.program.downstream(parameters)
        read = dict.fromkeys(name for op in operators for name in op.input_arg_names)
        entering = self._from_image.difference(_results(operators))
        return PartialProgram(
            parameters, tuple(operators), tuple(name for name in read if name in entering)
        )

    def cached_variables(self, targets: Iterable[Target]) -> tuple[str, ...]:
        """Every variable that enters the partial program of a target."""
        names = [name for target in targets for name in self.partial(target.readers).cached]
        return tuple(dict.fromkeys(names))

    def run_cuts(
        self, target: Target, cached_activations: Sequence[Arrays]
    ) -> Iterator[tuple[Cut, list[Detections]]]:
        """Run the partial program of a group once for every cut.

        Args:
            target: The group with cuts that remove something.
            cached_activations: For every batch, at least what enters the partial program.

        Yields:
            The cut and the boxes of every image.
        """
        engine = self.engine(self.partial(target.readers))
        for cut in target.cuts:
            runs = (engine({**cached, **cut.masks}) for cached in cached_activations)
            yield cut, [boxes for outputs in runs for boxes in self.boxes(outputs)]

    def complete_engine(self, cached: Iterable[str] = ()) -> Engine:
        """An engine from image to boxes that also gives the variables to cache."""
        names = [name for name in dict.fromkeys(cached) if name not in IMAGE_INPUTS]
        return self._engine(self.program, IMAGE_INPUTS, [*self.outputs, *names])

    def engine(self, partial: PartialProgram) -> Engine:
        """An engine from cached activations and masks to boxes.

        Its inputs are the cached activations and, for every reader, `mask_name(reader)`: float32
        [1, C, 1, 1] for a convolution that reads C channels, [C] for a matrix product.
        """
        program = self.program.copy(share_parameters=True)
        reading = [op for op in program.ops if weight_of(op) in partial.readers]
        masks = dict.fromkeys(_mask_input(program, op) for op in reading)
        return self._engine(program, [*partial.cached, *masks], self.outputs)

    def engine_with(self, parameters: Iterable[str], outputs: Iterable[str]) -> Engine:
        """An engine from cached activations and new values of some parameters to other variables.

        Its inputs are cached activations and, for every parameter, `value_name(parameter)`. Its
        outputs are those that depend on the parameters.
        """
        partial = self.behind(parameters)
        made = _results(partial.operators).intersection(outputs)
        needed = needed_for(partial.operators, made)
        program = self.program.copy(share_parameters=True)
        given = [_read_from_input(program, name) for name in partial.readers if name in needed]
        cached = [name for name in partial.cached if name in needed]
        # oneDNN would keep the weights of the first run for all others, though they are inputs.
        return self._engine(program, [*cached, *given], sorted(made), onednn=False)

    def bytes_an_image(self, cached: Iterable[str]) -> int:
        """Bytes of the cached variables of one image."""
        shapes = (self.program.block.var(name).shape[1:] for name in cached)
        return sum(4 * abs(int(np.prod(shape))) for shape in shapes)

    def boxes(self, outputs: Arrays) -> list[Detections]:
        """What a run finds in each image."""
        return parse_arrays([outputs[name] for name in self.outputs], "the detector")

    def _engine(
        self,
        program: DeployProgram,
        feeds: Sequence[str],
        fetches: Sequence[str],
        onednn: bool = True,
    ) -> Engine:
        return program.engine(feeds, fetches, self.folder, threads=self._threads, onednn=onednn)


def _results(operators: Iterable[Op]) -> set[str]:
    return {name for op in operators for name in op.output_arg_names}


def value_name(parameter: str) -> str:
    """Name of the input that gives a parameter its value."""
    return f"{parameter}.value"


@deployment_program()
def _read_from_input(p: DeployProgram, parameter: str) -> str:
    """Let all operators read a new input instead of a parameter; returns that input's name."""
    name, like = value_name(parameter), p.block.var(parameter)
    p.block.create_var(name=name, shape=like.shape, dtype=like.dtype, is_data=True)
    for op in p.readers(parameter):
        p.rename_input(op, parameter, name)
        if parameter in op.output_arg_names:  # a batch norm writes the statistics that it reads
            p.rename_output(op, parameter, name)
    return name


@deployment_program()
def _mask_input(p: DeployProgram, op: Op) -> str:
    """Multiply what an operator reads by a new input; returns that input's name."""
    weight, source = weight_of(op), data_of(op)
    name = mask_name(weight)
    if name not in p.block.vars:
        shape = [1, -1, 1, 1] if len(p.block.var(weight).shape) == 4 else [-1]
        p.block.create_var(name=name, shape=shape, dtype="float32", is_data=True)
    masked = p.new_variable(f"{source}.{name}", like=source)
    p.insert(
        p.ops.index(op),
        "elementwise_mul",
        {"X": [source], "Y": [name]},
        {"Out": [masked]},
        {"axis": -1},
    )
    p.rename_input(op, source, masked)
    return name

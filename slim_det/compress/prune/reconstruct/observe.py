"""What the unpruned model computes on the images: moments of inputs, and outputs to reproduce.

Each layer is seen at a number of output positions, which are drawn from every image with a seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from slim_det.compress.prune.reconstruct.intercept import intercept_place
from slim_det.compress.prune.reconstruct.layers import LinearLayer, data_names
from slim_det.compress.prune.reconstruct.moments import ROWS, Inputs, MomentSums, inputs_of
from slim_det.compress.prune.reconstruct.sums import Sum, at_positions
from slim_det.core.errors import LayerError
from slim_det.graph.op import Op
from slim_det.graph.operators import weight_of
from slim_det.graph.program import DeployProgram
from slim_det.graph.staged_run import StagedRun


@dataclass(frozen=True)
class Sampling:
    """Which positions of an image are used.

    Attributes:
        positions: Of one use of a layer, over all images.
        images: Number of images.
        seed: Of the choice.
    """

    positions: int
    images: int
    seed: int = 0

    def choose(self, image: int, use: int, available: int) -> np.ndarray:
        """Indices of output positions, ascending, int64 [P]; the same at every call."""
        wanted = math.ceil(self.positions / self.images)
        if wanted >= available:
            return np.arange(available)
        generator = np.random.default_rng([self.seed, image, use])
        return np.sort(generator.choice(available, wanted, replace=False))


@dataclass
class Observed:
    """Results of one pass of the unpruned model.

    Attributes:
        inputs: Weight name -> what an elimination knows of the layer's inputs.
        targets: (weight name, index of the operator) -> outputs at the chosen positions, for each
            image float32 [P, O].
        totals: Weight name -> the sum behind the layer, likewise.
    """

    inputs: dict[str, Inputs] = field(default_factory=dict)
    targets: dict[tuple[str, int], list[np.ndarray]] = field(default_factory=dict)
    totals: dict[str, list[np.ndarray]] = field(default_factory=dict)


def check_parameters(program: DeployProgram, parameters: Mapping[str, str]) -> None:
    """Make sure that a model can be run and learned from.

    Args:
        program: The model.
        parameters: Variable -> name in the state dict.

    Raises:
        LayerError: A weight or a statistic is not finite.
    """
    for variable in program.parameters:
        if variable in parameters and not np.isfinite(program.value(variable)).all():
            raise LayerError(f"'{parameters[variable]}' holds numbers that are not finite")


def observe(
    run: StagedRun,
    sampling: Sampling,
    readers: Sequence[LinearLayer],
    repaired: Sequence[LinearLayer],
    sums_behind: Mapping[str, Sum],
) -> Observed:
    """Run the unpruned model once.

    Args:
        run: The unpruned model on the images.
        sampling: Which positions are used.
        readers: Layers whose inputs are summed.
        repaired: Layers whose outputs are kept.
        sums_behind: Weight name -> sum, for those of them that have one.

    Raises:
        LayerError: What a layer reads or makes is not finite.
    """
    layers = list({layer.weight: layer for layer in (*readers, *repaired)}.values())
    sums = {layer.weight: MomentSums() for layer in readers}
    seen = Observed()
    outputs = {
        (layer.weight, use): _Outputs(layer, _matrix(run, layer, use))
        for layer in repaired
        for use in layer.uses
    }
    seen.totals = {layer.weight: [] for layer in repaired if layer.weight in sums_behind}
    names = [name for layer in layers for name in layer.inputs(run.program)]
    names += [sums_behind[name].total for name in seen.totals]
    for image, arrays in enumerate(run.arrays(names)):
        for layer in layers:
            for use, chosen, x in sampled_patches(run, layer, sampling, image, arrays):
                _check_finite(layer, x)
                if layer.weight in sums:
                    sums[layer.weight].add(x, np.zeros((*x.shape[:2], 0), np.float32))
                if (layer.weight, use) in outputs:
                    outputs[layer.weight, use].add(x)
                if layer.weight in seen.totals:
                    total = arrays[sums_behind[layer.weight].total][0]
                    seen.totals[layer.weight].append(at_positions(total, chosen))
    seen.targets = {key: one.result() for key, one in outputs.items()}
    for layer in readers:
        centre = intercept_place(run.program, layer) is not None
        seen.inputs[layer.weight] = inputs_of(sums.pop(layer.weight).total(), centre)
    return seen


def sampled_patches(
    run: StagedRun,
    layer: LinearLayer,
    sampling: Sampling,
    image: int,
    arrays: dict[str, np.ndarray],
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Index, chosen positions [P] and patches float32 [G, P, D] of one image for each use."""
    for use in layer.uses:
        op = run.program.ops[use]
        data = [arrays[name][0] for name in data_names(op)]
        shape = weight_shape(run.program, op)
        chosen = sampling.choose(image, use, layer.rule.positions(op, data, shape))
        x = layer.rule.patches(op, data, shape, chosen)
        yield use, chosen, x.astype(np.float32, copy=False)


def moments_mb(program: DeployProgram, layer: LinearLayer) -> float:
    """Size of the moments of a layer's input, in megabytes."""
    op = program.ops[layer.uses[0]]
    unread = np.empty(weight_shape(program, op), np.float32)  # only its shape counts
    groups, rows, _ = layer.rule.matrix(op, unread).shape
    return groups * rows**2 * 8 / 1e6


def weight_shape(program: DeployProgram, op: Op) -> tuple[int, ...]:
    """Shape of an operator's weight."""
    return tuple(program.block.var(weight_of(op)).shape)


class _Outputs:
    """Outputs of a layer for the patches of every image, computed for many images at once."""

    def __init__(self, layer: LinearLayer, matrix: np.ndarray) -> None:
        self._layer, self._matrix = layer, np.ascontiguousarray(matrix)
        self._waiting: list[np.ndarray] = []
        self._found: list[np.ndarray] = []

    def add(self, x: np.ndarray) -> None:
        """Add the patches of an image, [G, P, D]."""
        self._waiting.append(x)
        if sum(one.shape[1] for one in self._waiting) >= ROWS:
            self._flush()

    def result(self) -> list[np.ndarray]:
        """For each image float32 [P, O]."""
        self._flush()
        return self._found

    def _flush(self) -> None:
        if not self._waiting:
            return
        y = (np.concatenate(self._waiting, axis=1) @ self._matrix).transpose(1, 0, 2)
        _check_finite(self._layer, y)
        ends = np.cumsum([x.shape[1] for x in self._waiting])[:-1]
        self._found += [part.copy() for part in np.split(y.reshape(len(y), -1), ends)]
        self._waiting = []


def _matrix(run: StagedRun, layer: LinearLayer, use: int) -> np.ndarray:
    op = run.program.ops[use]
    return layer.rule.matrix(op, run.program.value(weight_of(op)))


def _check_finite(layer: LinearLayer, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise LayerError(
            f"'{layer.weight}' reads or makes numbers that are not finite; the weights before it "
            "are too large"
        )

"""One model on calibration images: its channels chosen, then its layers repaired after the cut."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from slim_det.compress.images import unlabelled_images
from slim_det.compress.prune.groups import Group, ModelGroups
from slim_det.compress.prune.plan import Plan
from slim_det.compress.prune.reconstruct.batch_norm import BatchNormStatistics
from slim_det.compress.prune.reconstruct.elimination import Elimination, eliminate
from slim_det.compress.prune.reconstruct.layers import (
    Changed,
    LinearLayer,
    changed_by,
    linear_layers,
)
from slim_det.compress.prune.reconstruct.observe import (
    Observed,
    Sampling,
    check_parameters,
    moments_mb,
    observe,
)
from slim_det.compress.prune.reconstruct.readers import (
    readers_of,
    readers_without,
    reading_layers,
)
from slim_det.compress.prune.reconstruct.repair import LayerError, repair_layer
from slim_det.compress.prune.reconstruct.settings import Calibration
from slim_det.compress.prune.reconstruct.sums import Sum, sums_behind
from slim_det.compress.tensors import set_parameter
from slim_det.core.errors import ConfigError, DataError, PlanError
from slim_det.evaluate.images import image_batches
from slim_det.graph.dygraph import evaluation_mode
from slim_det.graph.operators import weight_of
from slim_det.graph.program import DeployProgram
from slim_det.graph.staged_run import StagedRun, store_images
from slim_det.graph.trace import Trace, trace_program

logger = logging.getLogger("slim_det")

MOMENTS_MB = 1500
"""Memory for the moments of inputs at one time; where all need more, the model runs repeatedly."""

KEPT_MB = 8000
"""Largest size, on disk, of the activations that the repair keeps from stage to stage."""


@dataclass(frozen=True)
class Repair:
    """What a repair did.

    Attributes:
        calibration: Its settings.
        images: Number of images.
        layers: Error of every layer, in the order in which they were repaired.
        left: Weight name -> why its layer could not be repaired.
    """

    calibration: Calibration
    images: int
    layers: tuple[LayerError, ...]
    left: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        """Values of JSON."""
        return {
            **self.calibration.as_dict(),
            "images": self.images,
            "layers": [layer.as_dict() for layer in self.layers],
            "left": self.left,
        }

    def __str__(self) -> str:
        """One line, and one for each layer that was not repaired."""
        done = [layer for layer in self.layers if not layer.note]
        before, after = (
            np.mean([getattr(layer, which) for layer in done]) if done else 0.0
            for which in ("before", "after")
        )
        lines = [
            f"repaired {len(done)} layers on {self.images} images: mean relative error "
            f"{before:.4f} -> {after:.4f}"
        ]
        lines += [f"{one.weight}: not repaired, {one.note}" for one in self.layers if one.note]
        lines += [f"{name}: not repaired, {why}" for name, why in self.left.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Cut:
    """What a cut of some groups changes, and the sums behind layers that it repairs."""

    changed: Changed
    sums: dict[str, Sum]


@contextlib.contextmanager
def reconstruction_of(
    model: paddle.nn.Layer,
    trace: Trace,
    groups: ModelGroups,
    cfg: Any,
    calibration: Calibration,
    seed: int,
) -> Iterator[Reconstruction]:
    """The reconstruction of an unpruned detector; its files are deleted at the end.

    Args:
        model: The detector.
        trace: Its operators, at the size of the images.
        groups: Its channel groups.
        cfg: ppdet's configuration; ``TestReader`` prepares the images.
        calibration: Settings.
        seed: Of the sampled positions.

    Raises:
        DataError: There are no images, or they are of another size.
    """
    size_hw = trace.image_size_hw
    if size_hw is None or cfg is None:
        raise ConfigError("images are needed, and this command reads none")
    source, paths = unlabelled_images(calibration.images, calibration.folder)
    logger.info("learning from %d images of %s", len(paths), source)

    def images() -> Iterator[Mapping[str, np.ndarray]]:
        for path, batch in image_batches(cfg, paths):
            found = np.asarray(batch["image"]).shape
            if found != (1, 3, *size_hw):
                raise DataError(
                    f"TestReader makes '{path}' {list(found)}; expected [1, 3, "
                    f"{size_hw[0]}, {size_hw[1]}], the size of the model's input"
                )
            yield batch

    work = tempfile.TemporaryDirectory(prefix="slim_det_images_")
    with work as folder, evaluation_mode(model):
        yield Reconstruction(
            lambda one: trace_program(one, size_hw),
            model,
            trace.parameters,
            groups,
            calibration,
            seed,
            images(),
            Path(folder),
        )


class Reconstruction:
    """What a model computes on calibration images, to choose its channels and to repair it.

    Args:
        trace: Model -> program, before and after the cut.
        model: The unpruned model.
        parameters: Variable of the program -> name in the state dict.
        groups: Channel groups of the model.
        calibration: Settings.
        seed: Of the sampled positions.
        images: Inputs of the program for each image, with a batch axis of one.
        folder: For files, which hold everything that grows with the number of images.

    Attributes:
        program: The unpruned model.
    """

    def __init__(
        self,
        trace: Callable[[paddle.nn.Layer], DeployProgram],
        model: paddle.nn.Layer,
        parameters: Mapping[str, str],
        groups: ModelGroups,
        calibration: Calibration,
        seed: int,
        images: Iterator[Mapping[str, np.ndarray]],
        folder: Path,
    ) -> None:
        self._trace, self._groups, self._parameters = trace, groups, dict(parameters)
        self._calibration, self._folder = calibration, folder
        self.program = trace(model)
        self._layers = linear_layers(self.program, self._parameters)
        self._images, count = store_images(images, self.program.feeds, self._new_folder())
        if not count:
            raise DataError("no image to learn from")
        self._sampling = Sampling(calibration.positions, count, seed)
        self._observed = Observed()
        self._cuts: list[_Cut] = []
        self._waiting: list[str] = []

    @property
    def images(self) -> int:
        """Number of images."""
        return self._sampling.images

    def observe(
        self, names: list[str], choose: bool, repair: bool, cuts: Sequence[list[str]] = ()
    ) -> None:
        """Run the unpruned model on all images.

        Args:
            names: Groups that will lose channels.
            choose: Whether `eliminate` will be called for these groups, in this order.
            repair: Whether `repair` will be called.
            cuts: Some of the groups for each cut that will be repaired; by default one cut of all.

        Raises:
            LayerError: A weight is not finite, or so large that outputs are not.
        """
        check_parameters(self.program, self._parameters)
        self._cuts = [self._cut_of(own) for own in cuts or [names]]
        self._waiting = list(names) if choose else []
        for name in self._waiting:
            for weight in self._not_counted(name):
                logger.warning(
                    "'%s' reads channels of %s, but not as one matrix product: its error is not "
                    "counted", weight, name,
                )  # fmt: skip
        layers = {one.weight: one for cut in self._cuts for one in cut.changed.layers}
        self._observe_some(list(layers.values()) if repair else ())

    def _not_counted(self, name: str) -> list[str]:
        """Weights that read a group but are no linear layers."""
        used = {self._parameters.get(weight_of(op)) for op in self.program.ops}
        axes = self._groups.axes_reading(self._groups.groups[name].units)
        reading = dict.fromkeys(axis.parameter for axis in axes if axis.parameter in used)
        return [weight for weight in reading if weight not in self._layers]

    def _cut_of(self, names: list[str]) -> _Cut:
        units = np.concatenate([self._groups.groups[name].units for name in names])
        changed = changed_by(self.program, self._parameters, self._groups, units)
        return _Cut(changed, sums_behind(self.program, changed.layers, changed.variables))

    def _observe_some(self, repaired: Sequence[LinearLayer] = ()) -> None:
        """Run the unpruned model for as many of the waiting groups as memory allows."""
        readers: dict[str, LinearLayer] = {}
        while self._waiting:
            reading = reading_layers(self._groups, self._waiting[:1], self._layers)
            wanted = {**readers, **{layer.weight: layer for layer in reading}}
            size_mb = sum(moments_mb(self.program, layer) for layer in wanted.values())
            if readers and size_mb > MOMENTS_MB:
                break
            readers = wanted
            self._waiting.pop(0)
        self._observed.inputs.clear()
        run, reading = self._run(self.program), list(readers.values())
        sums = {name: one for cut in self._cuts for name, one in cut.sums.items()}
        seen = observe(run, self._sampling, reading, repaired, sums)
        self._observed.inputs = seen.inputs
        self._observed.targets.update(seen.targets)
        self._observed.totals.update(seen.totals)

    def scores(self, group: Group, count: int) -> np.ndarray:
        """One score per unit of a group: its place in the order of elimination, float64 [U]."""
        scores = np.full(len(group.units), np.inf)
        order = self.eliminate(group, count).order
        scores[order] = np.arange(len(order))
        return scores

    def eliminate(self, group: Group, count: int) -> Elimination:
        """Find the cheapest ``count`` units to remove from a group that was observed."""
        while group.name in self._waiting:
            self._observe_some()
        readers = readers_of(
            group,
            self._groups,
            self.program,
            self._layers,
            self._observed.inputs,
            self._calibration.ridge,
        )
        return eliminate(readers, len(group.units), count, group.holders)

    def readers_without(
        self, group: Group, cuts: Sequence[np.ndarray]
    ) -> list[dict[str, np.ndarray]]:
        """Parameters of the layers that read a group, solved for without some of its units.

        Args:
            group: The group that was eliminated last.
            cuts: Places of the removed units in the group, for each cut.

        Returns:
            For each cut: variable of the program -> value of the same shape.
        """
        return readers_without(
            group.units,
            [group.units[places] for places in cuts],
            self._groups,
            self.program,
            self._layers,
            self._observed.inputs,
            self._calibration.ridge,
        )

    def some_images(self, count: int) -> list[dict[str, np.ndarray]]:
        """The inputs of the program for at most this many images, evenly spread."""
        chosen = np.unique(np.linspace(0, self.images - 1, min(count, self.images)).round())
        return [
            {name: self._images.read(name, int(index)) for name in self.program.feeds}
            for index in chosen
        ]

    def repair(self, model: paddle.nn.Layer, plan: Plan, number: int = -1) -> Repair:
        """Repair a model that was cut as observed, and restate its batch norms, in place.

        The model is changed at the end, all parameters at once.

        Args:
            model: The cut model.
            plan: What was cut.
            number: Which of the cuts that were announced to `observe` it is; by default the last
                one, after which there can be no other, because what is observed is given up.

        Raises:
            PlanError: The cut model has other operators than the unpruned one.
        """
        self._observed.inputs.clear()
        cut, observed = self._cuts[number], self._observed
        if number not in (-1, len(self._cuts) - 1):
            observed = Observed({}, dict(observed.targets), dict(observed.totals))
        program = self._trace(model)
        if [op.type for op in program.ops] != [op.type for op in self.program.ops]:
            raise PlanError("the cut model has other operators than before; it cannot be repaired")
        run, errors = self._run(program, KEPT_MB), []
        statistics = BatchNormStatistics(cut.changed.batch_norms)
        for layer in tqdm(cut.changed.layers, "repair", unit="layer", disable=None, leave=False):
            ridge = self._calibration.ridge
            behind = cut.sums.get(layer.weight)
            errors.append(
                repair_layer(run, layer, plan, observed, self._sampling, ridge, behind, statistics)
            )
        statistics.restate(run)
        parameters = dict(model.named_parameters())
        known = set(program.parameters)
        for variable, name in self._parameters.items():
            if variable in known:
                set_parameter(parameters[name], program.value(variable))
        repair = Repair(self._calibration, self.images, tuple(errors), cut.changed.left)
        logger.info("%s", repair)
        return repair

    def _run(self, program: DeployProgram, limit_mb: float = 0.0) -> StagedRun:
        folder = self._new_folder()
        return StagedRun(program, self._images, self.images, folder, limit_mb)

    def _new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._folder))

"""The sensitivity analysis: from a trained model to the loss of AP of every cut."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from slim_det.compress.prune.groups import find_groups
from slim_det.compress.prune.pruner import Pruner
from slim_det.core.errors import SensitivityError, SlimDetError
from slim_det.detectors.image_size import image_size_hw
from slim_det.evaluate.image_matches import ImageMatches
from slim_det.evaluate.images import eval_at, require_one_size
from slim_det.graph.trace import trace_detector
from slim_det.planning.sensitivity.bootstrap import bootstrap_losses, relative_loss
from slim_det.planning.sensitivity.candidates import choose_groups, make_targets
from slim_det.planning.sensitivity.cuts import Target, keep_cuts
from slim_det.planning.sensitivity.grid import split
from slim_det.planning.sensitivity.identity import identify
from slim_det.planning.sensitivity.journal import Journal
from slim_det.planning.sensitivity.measure import (
    BASELINE,
    Finished,
    Images,
    Job,
    Prepared,
    measure_baseline,
    measure_cuts,
    unfinished,
    unit_keys,
    unpack_matches,
)
from slim_det.planning.sensitivity.partial_inference import DetectorProgram, save_program
from slim_det.planning.sensitivity.result import (
    Bands,
    Conditions,
    Request,
    SensitivityResult,
    Sources,
)
from slim_det.planning.sensitivity.workers import Workers, threads_each

logger = logging.getLogger("slim_det")

MIN_BASELINE = 1e-3
"""Below this baseline a relative loss means nothing."""


@dataclass(frozen=True)
class Settings:
    """What to measure, and how.

    Attributes:
        ratios: Shares of channels to remove, ascending.
        params: Layers in any spelling; None for the 18 of a YOLOv3 head, or every group.
        criterion: Which channels are removed.
        num_images: Number of images to evaluate on, from the first; None for all.
        workers: Number of processes.
        shard: Index (from 0) and number of parts; None for everything.
        cache_mb: Limit for the cached activations of each process, in MB (10^6 bytes).
        bootstrap: Number of resamplings for the confidence bands; 0 for none.
    """

    ratios: tuple[float, ...]
    params: tuple[str, ...] | None = None
    criterion: str = "l1_norm"
    num_images: int | None = None
    workers: int = 1
    shard: tuple[int, int] | None = None
    cache_mb: int = 1000
    bootstrap: int = 0


def analyse(
    cfg: Any, model: paddle.nn.Layer, settings: Settings, output: str | Path
) -> SensitivityResult:
    """Measure the loss of AP of every group at every ratio: each cut alone, without fine-tuning.

    The channels are those that the pruner would remove from the trained weights.

    Args:
        cfg: ppdet's configuration.
        model: The model with trained weights.
        settings: What to measure.
        output: The file of the result; the journal of finished points is kept beside it.

    Raises:
        SensitivityError: The baseline is about 0, or the journal belongs to another run.
        LayerError: A layer is unknown or cannot be cut.
    """
    with open_analysis(cfg, model, settings, output) as analysis:
        analysis.measure(analysis.targets)
        return analysis.result(analysis.targets)


@contextlib.contextmanager
def open_analysis(
    cfg: Any,
    model: paddle.nn.Layer,
    settings: Settings,
    output: str | Path,
    check: Callable[[SensitivityResult], object] = lambda empty: None,
) -> Iterator[Analysis]:
    """Prepare an analysis and measure its baseline.

    Args:
        cfg: See `analyse`.
        model: See `analyse`.
        settings: See `analyse`.
        output: See `analyse`.
        check: Called before the first cut, with a result that holds no point; if it raises an
            error, nothing is left behind.

    Raises:
        SlimDetError: As `analyse`, or of ``check``.
    """
    start = time.monotonic()
    require_one_size(cfg, "sensitivity")
    with _workers(settings.workers) as workers:
        pruner = Pruner(settings.criterion, pruned_ratios=0.5)
        size_hw = image_size_hw(cfg)
        trace = trace_detector(model, size_hw)
        groups = find_groups(model, trace)
        names = choose_groups(model, groups, settings.params)
        targets = make_targets(model, trace, groups, names, settings.ratios, pruner)
        with eval_at(cfg, size_hw):
            images = Images(cfg, settings.num_images)
        if not images.num_images:
            raise SensitivityError("EvalDataset has no images; there is nothing to measure on")
        header = identify(cfg, model, images, pruner)
        is_new = not journal_path(output).exists()
        with Journal(journal_path(output), header) as journal, _program_folder(output) as folder:
            with _removed_on_early_error(journal, is_new):
                save_program(model, size_hw, folder)
                program = DetectorProgram(folder, threads_each(1))
                images.chunk_images = _chunk_images(cfg, program, targets, images, settings)
                left = _left(_shard_of(targets, settings.shard), images, journal)
                prepared = measure_baseline(images, program, left, journal.append)
                table = _Table(images, journal)
                table.require_baseline()
                analysis = Analysis(
                    settings, size_hw, targets, header, images, program, journal, table, prepared,
                    workers, start,
                )  # fmt: skip
                check(analysis.result(()))
            yield analysis


def _left(targets: Sequence[Target], images: Images, journal: Journal) -> Job:
    """What is not recorded of some cuts."""
    recorded = frozenset(journal.entries)
    return unfinished(Job(tuple(targets), images.num_images, images.chunk_images, recorded))


@dataclass(frozen=True)
class Analysis:
    """An analysis whose cuts are measured on request; each is recorded in the journal.

    Attributes:
        settings: What may be measured, and how.
        size_hw: Of the network's input, in pixels.
        all_targets: Every group with its cuts, those of other shards included.
        header: What is measured on what.
        images: The evaluation images.
        program: The detector.
        journal: The finished points.
        table: Their AP.
        prepared: All images after a run of the complete detector, if they fit into memory.
        workers: Processes that run the cuts; None where this process does.
        start: When it began, by `time.monotonic`.
    """

    settings: Settings
    size_hw: tuple[int, int]
    all_targets: list[Target]
    header: dict[str, Any]
    images: Images
    program: DetectorProgram
    journal: Journal
    table: _Table
    prepared: Prepared | None
    workers: Workers | None
    start: float

    @property
    def targets(self) -> list[Target]:
        """The groups with the cuts of this shard."""
        return _shard_of(self.all_targets, self.settings.shard)

    @property
    def finished(self) -> tuple[Target, ...]:
        """The groups with the cuts that are recorded for every image."""
        left = _left(self.all_targets, self.images, self.journal)
        names = {cut.name for target in left.targets for cut in target.cuts}
        return keep_cuts(self.all_targets, lambda cut: cut.name not in names)

    def measure(self, targets: Sequence[Target]) -> None:
        """Measure what is not recorded yet.

        Raises:
            SensitivityError: A process failed, or the journal cannot be written.
        """
        images, program = self.images, self.program
        with _reported(targets, images, self.journal) as finished:
            left = _left(targets, images, self.journal)
            if left.targets:
                measure_cuts(images, program, left, finished, self.prepared, self.workers)

    def result(self, measured: Sequence[Target]) -> SensitivityResult:
        """The result that holds these cuts, which are all recorded."""
        settings, header, table = self.settings, self.header, self.table
        ap = {t.name: {c.ratio: table.ap(c.name) for c in t.cuts} for t in measured}
        losses = {
            name: {ratio: relative_loss(table.baseline, value) for ratio, value in row.items()}
            for name, row in ap.items()
        }
        shard = settings.shard
        return SensitivityResult(
            Conditions(
                header["metric"],
                table.baseline,
                header["num_images"],
                header["criterion"],
                self.size_hw,
            ),
            Sources(**{key: header[key] for key in Sources.__dataclass_fields__}),
            Request(
                group_order=tuple(target.name for target in self.all_targets),
                ratios=settings.ratios,
                channels={target.name: target.channels for target in self.all_targets},
                shard=f"{shard[0] + 1}/{shard[1]}" if shard else None,
            ),
            losses,
            ap,
            seconds=time.monotonic() - self.start,
            bands=_bands(measured, settings.bootstrap, table) if settings.bootstrap else None,
        )


def _workers(count: int) -> contextlib.AbstractContextManager[Workers | None]:
    """Start the worker processes; None where this process does the work."""
    return Workers(count, threads_each(count)) if count > 1 else contextlib.nullcontext()


def journal_path(output: str | Path) -> Path:
    """Where the finished points of a result are recorded."""
    return Path(output).with_suffix(".journal.jsonl")


@contextlib.contextmanager
def _removed_on_early_error(journal: Journal, is_new: bool) -> Iterator[None]:
    """Remove a journal that this run began if there is an error before the first cut."""
    try:
        yield
    except SlimDetError:
        if is_new:
            journal.path.unlink(missing_ok=True)
        raise


class _Table:
    """The AP of everything that is recorded."""

    def __init__(self, images: Images, journal: Journal) -> None:
        self._images, self._journal = images, journal
        self._baseline_matches = self.matches(BASELINE)
        self.baseline = images.scorer.ap(self._baseline_matches)
        self._drawn: dict[bytes, float] = {}

    def require_baseline(self) -> None:
        """Refuse a model that detects nothing."""
        if self.baseline < MIN_BASELINE:
            raise SensitivityError(
                f"the baseline {self._images.scorer.name} is {self.baseline:.4f} on "
                f"{self._images.num_images} images; expected at least {MIN_BASELINE}: train "
                "the model first, or check that weights, classes and data belong together"
            )

    def matches(self, name: str) -> list[ImageMatches]:
        """The matches of every image, in order."""
        keys = unit_keys(name, self._images.num_images, self._images.chunk_images)
        try:
            return [m for key in keys for m in unpack_matches(self._journal.entries[key])]
        except (KeyError, ValueError) as error:
            raise SensitivityError(
                f"journal '{self._journal.path}': '{name}' is damaged ({error}); delete the file "
                "to measure again"
            ) from error

    def ap(self, name: str) -> float:
        """The AP of one cut."""
        return self._images.scorer.ap(self.matches(name))

    def bands(self, name: str, samples: int, seed: int = 0) -> tuple[float, float]:
        """5th and 95th percentile of the loss of one cut."""
        matches = self.matches(name)
        return bootstrap_losses(
            lambda drawn: self._drawn_ap(matches, drawn),
            self._drawn_baseline,
            self._images.num_images,
            samples,
            seed,
        )

    def _drawn_baseline(self, drawn: np.ndarray) -> float:
        """The baseline on a resample, computed once: every cut has the same resamples."""
        key = drawn.tobytes()
        if key not in self._drawn:
            self._drawn[key] = self._drawn_ap(self._baseline_matches, drawn)
        return self._drawn[key]

    def _drawn_ap(self, matches: list[ImageMatches], drawn: np.ndarray) -> float:
        return self._images.scorer.ap([matches[i] for i in drawn], drawn.tolist())


@contextlib.contextmanager
def _program_folder(output: str | Path) -> Iterator[Path]:
    """A folder beside the result; whatever a killed run left there is removed."""
    folder = Path(output).with_suffix(".program")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _chunk_images(
    cfg: Any, program: DetectorProgram, targets: list[Target], images: Images, settings: Settings
) -> int:
    """How many images fit into the cache, in full batches of the reader."""
    each = program.bytes_an_image({*program.cached_variables(targets), "image"})
    batch = int(cfg["EvalReader"]["batch_size"])
    fitting = batch * max(1, int(settings.cache_mb * 1e6 / each / batch))
    return min(fitting, images.num_images)


def _shard_of(targets: list[Target], shard: tuple[int, int] | None) -> list[Target]:
    """The targets of one shard; all shards cost about the same."""
    if shard is None:
        return targets
    index, count = shard
    cuts = [(target, cut) for target in targets for cut in target.cuts]
    chosen = {cuts[i][1].name for i in split([float(t.macs) for t, _ in cuts], count)[index]}
    return list(keep_cuts(targets, lambda cut: cut.name in chosen))


@contextlib.contextmanager
def _reported(targets: Sequence[Target], images: Images, journal: Journal) -> Iterator[Finished]:
    """A function that records each finished unit and shows the progress."""
    keys = [
        key
        for target in targets
        for cut in target.cuts
        for key in unit_keys(cut.name, images.num_images, images.chunk_images)
    ]
    known = len(journal.entries.keys() & keys)
    if known:
        logger.info("%d of %d points are already recorded", known, len(keys))
    with tqdm(total=len(keys), initial=known, unit="point", disable=None) as bar:

        def finished(key: str, value: dict[str, Any]) -> None:
            journal.append(key, value)
            bar.update()

        yield finished


def _bands(measured: Sequence[Target], samples: int, table: _Table) -> Bands:
    bands = {
        target.name: {cut.ratio: table.bands(cut.name, samples) for cut in target.cuts}
        for target in tqdm(measured, desc="bootstrap", unit="group", disable=None)
    }
    low, high = (
        {name: {ratio: ends[i] for ratio, ends in row.items()} for name, row in bands.items()}
        for i in (0, 1)
    )
    return Bands(samples, 0, low, high)

"""Measures candidates: one run of the complete detector, then the partial program of each cut.

Images are processed in chunks, so that the memory for cached activations does not grow with the
data set. A *unit* of work is one cut on one chunk. It is reported as soon as it is finished, with
the matches of every image, from which the AP is computed later.
"""

from __future__ import annotations

import base64
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from slim_det.evaluate.detections import Detections
from slim_det.evaluate.evaluation import eval_reader
from slim_det.evaluate.image_matches import ImageMatches
from slim_det.evaluate.matching import make_scorer
from slim_det.evaluate.scorer import ApScorer
from slim_det.graph.engine import Engine
from slim_det.planning.sensitivity.cuts import Cut, Target, keep_cuts
from slim_det.planning.sensitivity.partial_inference import IMAGE_INPUTS, DetectorProgram
from slim_det.planning.sensitivity.workers import Workers

BASELINE = "baseline"

Finished = Callable[[str, "dict[str, Any]"], None]
"""Receives the key of a unit and its value as JSON."""


@dataclass(frozen=True)
class Job:
    """What to measure.

    Attributes:
        targets: Groups with their cuts.
        num_images: Number of images to use, from the first.
        chunk_images: Images whose cached activations are kept at a time.
        recorded: Keys of the units that are already measured.
    """

    targets: tuple[Target, ...]
    num_images: int
    chunk_images: int
    recorded: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Chunk:
    """Consecutive images.

    Attributes:
        start: Index of the first image in the data set.
        batches: What the reader gave, reduced to the inputs of the detector.
    """

    start: int
    batches: list[dict[str, np.ndarray]]

    @property
    def num_images(self) -> int:
        """The sum over all batches."""
        return sum(len(batch["image"]) for batch in self.batches)


def unit_key(name: str, start: int, images: int) -> str:
    """Key of the unit that measures ``name`` on ``images`` images from ``start``."""
    return f"{name} {start}:{start + images}"


def unit_keys(name: str, num_images: int, chunk_images: int) -> list[str]:
    """Keys of all units of a candidate, in the order of their images."""
    starts = range(0, num_images, chunk_images)
    return [unit_key(name, start, min(chunk_images, num_images - start)) for start in starts]


def pack_matches(matches: Sequence[ImageMatches]) -> dict[str, Any]:
    """The value of a unit."""
    return {"images": [base64.b64encode(match.to_bytes()).decode("ascii") for match in matches]}


def unpack_matches(value: dict[str, Any]) -> list[ImageMatches]:
    """The matches in a value that `pack_matches` made.

    Raises:
        ValueError: The value is damaged.
    """
    return [ImageMatches.from_bytes(base64.b64decode(text)) for text in value["images"]]


def unfinished(job: Job) -> Job:
    """The job without the cuts that are recorded for every image."""

    def is_left(cut: Cut) -> bool:
        return not job.recorded.issuperset(unit_keys(cut.name, job.num_images, job.chunk_images))

    return replace(job, targets=keep_cuts(job.targets, is_left))


class Images:
    """The evaluation images in chunks; the first pass adds their objects to the scorer.

    Args:
        cfg: ppdet's configuration.
        num_images: How many to use, from the first; None for all.
        chunk_images: Images per chunk, a multiple of the reader's batch size; 0 for all of them.
    """

    def __init__(self, cfg: Any, num_images: int | None = None, chunk_images: int = 0) -> None:
        self.dataset, self._loader = eval_reader(cfg)
        known = len(self.dataset)
        self.num_images = min(num_images or known, known)
        self.chunk_images = chunk_images or self.num_images
        self.scorer: ApScorer = make_scorer(cfg, self.dataset, num_images)

    def __iter__(self) -> Iterator[Chunk]:
        start, batches = 0, []
        for batch in self._batches():
            batches.append(batch)
            chunk = Chunk(start, batches)
            if chunk.num_images >= self.chunk_images:
                yield chunk
                start, batches = start + chunk.num_images, []
        if batches:
            yield Chunk(start, batches)

    def _batches(self) -> Iterator[dict[str, np.ndarray]]:
        left, is_first = self.num_images, self.scorer.num_images == 0
        for batch in self._loader.dataloader:
            if is_first:
                self.scorer.add_batch(batch)
            arrays = {name: np.asarray(batch[name])[:left] for name in IMAGE_INPUTS}
            yield arrays
            left -= len(arrays["image"])
            if left == 0:
                return


@dataclass(frozen=True)
class Prepared:
    """A chunk after a run of the complete detector.

    Attributes:
        chunk: The images.
        cached_activations: For every batch, the inputs of the partial programs.
        boxes: What the complete detector finds in each image.
    """

    chunk: Chunk
    cached_activations: list[dict[str, np.ndarray]]
    boxes: list[Detections]


def measure_baseline(
    images: Images, program: DetectorProgram, job: Job, finished: Finished
) -> Prepared | None:
    """Run the complete detector on every image; afterwards the scorer has all objects.

    Args:
        images: The evaluation images.
        program: The detector.
        job: What `measure_cuts` will measure.
        finished: Called with each unit.

    Returns:
        All images, if they fit into one chunk and a cut is left to measure; None otherwise.
    """
    keep = bool(job.targets) and job.chunk_images >= images.num_images
    engine = program.complete_engine(program.cached_variables(job.targets) if keep else ())
    prepared = None
    for chunk in images:
        key = unit_key(BASELINE, chunk.start, chunk.num_images)
        if keep or key not in job.recorded:
            prepared = _prepare(program, engine, chunk)
        if prepared and key not in job.recorded:
            finished(key, pack_matches(_match(images.scorer, chunk, prepared.boxes)))
    return prepared if keep else None


def measure_cuts(
    images: Images,
    program: DetectorProgram,
    job: Job,
    finished: Finished,
    prepared: Prepared | None = None,
    workers: Workers | None = None,
) -> None:
    """Measure every cut of a job that is not recorded, chunk by chunk.

    Args:
        images: The evaluation images.
        program: The detector.
        job: What to measure.
        finished: Called with each unit as soon as it is finished.
        prepared: What `measure_baseline` returned.
        workers: Run the partial programs; None to run them in this process.
    """
    for part in [prepared] if prepared else _prepared_chunks(images, program, job):
        chunk = part.chunk
        for name, boxes in _boxes_of_cuts(program, part, _left(job, chunk), workers):
            matches = _match(images.scorer, chunk, boxes)
            finished(unit_key(name, chunk.start, chunk.num_images), pack_matches(matches))


def _boxes_of_cuts(
    program: DetectorProgram, part: Prepared, targets: tuple[Target, ...], workers: Workers | None
) -> Iterator[tuple[str, list[Detections]]]:
    """Name and boxes of each cut; a cut that removes nothing has the boxes of the baseline."""
    for target in targets:
        yield from ((cut.name, part.boxes) for cut in target.cuts if not cut.masks)
    masked = keep_cuts(targets, lambda cut: bool(cut.masks))
    if workers and masked:
        yield from workers.run(program, part.cached_activations, masked)
        return
    for target in masked:
        yield from (
            (cut.name, boxes) for cut, boxes in program.run_cuts(target, part.cached_activations)
        )


def _prepared_chunks(images: Images, program: DetectorProgram, job: Job) -> Iterator[Prepared]:
    engine = program.complete_engine(program.cached_variables(job.targets))
    for chunk in images:
        if _left(job, chunk):
            yield _prepare(program, engine, chunk)


def _prepare(program: DetectorProgram, engine: Engine, chunk: Chunk) -> Prepared:
    cached_activations, boxes = [], []
    for batch in chunk.batches:
        outputs = engine(batch)
        boxes += program.boxes(outputs)
        cached_activations.append({**batch, **outputs})
    return Prepared(chunk, cached_activations, boxes)


def _left(job: Job, chunk: Chunk) -> tuple[Target, ...]:
    """The groups with the cuts that are not recorded for a chunk."""
    key = functools.partial(unit_key, start=chunk.start, images=chunk.num_images)
    return keep_cuts(job.targets, lambda cut: key(cut.name) not in job.recorded)


def _match(scorer: ApScorer, chunk: Chunk, boxes: list[Detections]) -> list[ImageMatches]:
    return [scorer.match(chunk.start + i, box) for i, box in enumerate(boxes)]

"""Verifies an artifact on real images in every engine it is deployed in."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from tqdm import tqdm

from slim_det.deploy.predictor import MODEL_FILE, Predictor
from slim_det.deploy.preprocessing import compare_images
from slim_det.detectors.image_size import target_size_hw
from slim_det.evaluate.evaluation import eval_reader
from slim_det.evaluate.images import eval_at, image_batches
from slim_det.evaluate.matching import make_scorer
from slim_det.evaluate.preprocess import INPUTS, ArtifactReader
from slim_det.evaluate.tensor_agreement import worst_of
from slim_det.graph.normalization import Normalization, read_normalization
from slim_det.graph.program import DeployProgram
from slim_det.verify.backends import REFERENCE, Backend, make_backends
from slim_det.verify.runners import Batch
from slim_det.verify.stages import Stage, distances, judge

logger = logging.getLogger("slim_det")

MAX_IMAGES = 16
"""Largest number of images whose outputs are compared."""


def verify_artifact(
    model: paddle.nn.Layer,
    cfg: Any,
    folder: str | Path,
    images: list[str],
    with_eval: bool = True,
    eval_images: int | None = None,
) -> list[Stage]:
    """Compare an artifact, in each engine, with the model it was exported from.

    Args:
        model: The model with its weights; a quantized model simulates its integers.
        cfg: ppdet's configuration; ``TestReader`` preprocesses the images of the reference.
        folder: Folder of the artifact.
        images: Image files whose outputs are compared, at most the first 16.
        with_eval: Whether to measure AP on ``EvalDataset`` as well.
        eval_images: Number of images to measure AP on, from the first; None for all.

    Returns:
        Stages ``preprocess``, ``dygraph``, ``exported program``, ``paddle inference``,
        ``paddle-lite program`` if the artifact has one, and ``paddle-lite x86``.

    Raises:
        ExportError: The artifact is incomplete or damaged.
    """
    folder = Path(folder)
    predictor = Predictor(folder)
    if len(images) > MAX_IMAGES:
        logger.info("outputs are compared on the first %d of %d images", MAX_IMAGES, len(images))
    with tempfile.TemporaryDirectory(prefix="slim_det_verify_") as work:
        program = DeployProgram.load(folder / Path(MODEL_FILE).stem)
        backends = make_backends(model, cfg, folder, predictor, program, Path(work))
        prepared = _run_images(backends, cfg, images[:MAX_IMAGES], predictor)
        aps: dict[str, float] = {}
        if with_eval:
            with eval_at(cfg, target_size_hw(cfg)):
                aps = _evaluate(backends, cfg, predictor.reader, eval_images)
    return [_preprocess_stage(read_normalization(program), prepared), *_stages(backends, aps)]


def _run_images(
    backends: list[Backend], cfg: Any, images: list[str], predictor: Predictor
) -> list[tuple[Batch, Batch]]:
    """Run all backends on the images; returns each image as preprocessed by both readers."""
    paths, expected = [], []
    for path, batch in image_batches(cfg, images, predictor.image_size_hw):
        paths.append(path)
        expected.append({key: np.asarray(batch[key]) for key in INPUTS})
    prepared = [predictor.reader(path) for path in paths]
    for backend in backends:
        backend.found = backend.run(_input_of(backend, paths, expected, prepared))
    return list(zip(expected, prepared))


def _input_of(
    backend: Backend, paths: list[str], expected: list[Batch], prepared: list[Batch]
) -> list[Batch]:
    """The images, preprocessed for a backend."""
    if backend.is_model:
        return expected
    return [backend.reader(path) for path in paths] if backend.reader else prepared


def _evaluate(
    backends: list[Backend], cfg: Any, reader: ArtifactReader, limit: int | None
) -> dict[str, float]:
    """AP of every backend that is shown; the artifact's engines preprocess the files themselves."""
    dataset, loader = eval_reader(cfg)
    count = min(limit or len(dataset), len(dataset))
    scorer = make_scorer(cfg, dataset, count)
    running = [backend for backend in backends if backend.shown and backend.can_run]
    with tqdm(total=count, desc="verify", unit="image", disable=None, leave=False) as bar:
        for batch in loader:
            start = scorer.num_images
            scorer.add_batch(batch)
            places = range(start, scorer.num_images)
            own = list(_single_images(batch))[: len(places)]
            paths = [dataset.roidbs[place]["im_file"] for place in places]
            prepared = [reader(path) for path in paths]
            for backend in running:
                found = backend.run(_input_of(backend, paths, own, prepared))
                backend.matches += [scorer.match(p, f.boxes) for p, f in zip(places, found)]
            bar.update(len(places))
            if scorer.num_images >= count:
                break
    return {backend.name: scorer.ap(backend.matches) for backend in running if backend.can_run}


def _single_images(batch: dict[str, Any]) -> Iterator[Batch]:
    """Split a reader's batch into single images."""
    arrays = {key: np.asarray(batch[key], np.float32) for key in INPUTS}
    for place in range(len(arrays["image"])):
        yield {key: value[place : place + 1] for key, value in arrays.items()}


def _preprocess_stage(inside: Normalization | None, prepared: list[tuple[Batch, Batch]]) -> Stage:
    """Compare the artifact's images, and what its program makes of them, with ``TestReader``'s."""
    worst = worst_of([compare_images(expected, own, inside) for expected, own in prepared])
    note = worst.fault or ("the program normalises" if inside else "")
    return Stage(
        "preprocess", worst.max_abs, worst.cosine, None, bool(prepared) and not worst.fault, note
    )


def _stages(backends: list[Backend], aps: dict[str, float]) -> list[Stage]:
    """The stage of each backend that is shown, in order."""
    by_name = {backend.name: backend for backend in backends}
    stages = []
    for backend in [backend for backend in backends if backend.shown]:
        name, reference = backend.name, by_name[backend.reference]
        if backend.skipped:
            stages.append(Stage(name, note=f"skipped: {backend.skipped}"))
        elif backend.error or reference.error:
            stages.append(Stage(name, passed=False, note=backend.error or reference.error))
        else:
            pair = (aps.get(name), aps.get(REFERENCE))
            noisy = by_name.get(backend.noise)
            noise = distances(noisy.found, by_name[noisy.reference].found) if noisy else []
            found, expected = backend.found, reference.found
            stages.append(judge(name, found, expected, backend.limits, pair, backend.note, noise))
    return stages

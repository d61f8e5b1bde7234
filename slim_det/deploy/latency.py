"""Latency of exported models, measured alternately so that machine drift affects all alike."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slim_det.core.errors import ExportError
from slim_det.deploy.predictor import Predictor, network_engine
from slim_det.graph.engine import Engine
from slim_det.graph.int8_program import for_kernels
from slim_det.graph.program import DeployProgram

WARM_UP_RUNS = 5


@dataclass(frozen=True)
class Latency:
    """Single-image latency of one exported model.

    Attributes:
        artifact: Folder of the artifact.
        latency_ms: Median.
        p10_ms: 10th percentile.
        p90_ms: 90th percentile.
        speedup: Median over the rounds of the first model's time divided by this model's.
        precision: Precision of its kernels, ``int8`` or ``float32``.
    """

    artifact: str
    latency_ms: float
    p10_ms: float
    p90_ms: float
    speedup: float
    precision: str = "float32"


def compare_latency(
    artifacts: Sequence[str | Path],
    runs: int = 50,
    threads: int = 1,
    seed: int = 0,
    network_only: bool = False,
) -> list[Latency]:
    """Time exported models alternately: each round runs every model once.

    Args:
        artifacts: Folders of exported models; the others are compared to the first.
        runs: Number of measured rounds, after five warm-up rounds.
        threads: Number of CPU threads.
        seed: Seed of the random image, float32 [1, 3, H, W] at each model's own size.
        network_only: Measure only up to the head's raw outputs; the time of decoding and NMS
            depends on the number of boxes in an image.

    Returns:
        One entry per model, in order. Image loading is not included; decoding and NMS are, unless
        ``network_only`` is set.

    Raises:
        ExportError: An artifact cannot be loaded, or has no raw outputs before its boxes.
    """
    predictors = [Predictor(folder, threads) for folder in artifacts]
    calls = [_network(one, threads) if network_only else one for one in predictors]
    batches = [random_batch(predictor.largest_size_hw, seed) for predictor in predictors]
    times = np.zeros((WARM_UP_RUNS + runs, len(predictors)))
    for row in times:
        for i, (call, batch) in enumerate(zip(calls, batches)):
            start = time.perf_counter()
            call(batch)
            row[i] = (time.perf_counter() - start) * 1e3
    times = times[WARM_UP_RUNS:]
    medians = np.median(times, axis=0).tolist()
    p10, p90 = np.percentile(times, (10, 90), axis=0).tolist()
    speedups = np.median(times[:, :1] / times, axis=0).tolist()
    return [
        Latency(str(folder), medians[i], p10[i], p90[i], speedups[i], predictors[i].precision)
        for i, folder in enumerate(artifacts)
    ]


def _network(predictor: Predictor, threads: int) -> Engine:
    """An engine for an exported model without decoding and NMS."""
    int8 = predictor.precision == "int8"
    program = for_kernels(DeployProgram.load(predictor.folder / "model"), int8)
    engine = network_engine(program, int8, threads)
    if engine is None:
        raise ExportError(f"artifact '{predictor.folder}' has no raw outputs before its boxes")
    return engine


def random_batch(image_size_hw: tuple[int, int], seed: int = 0) -> dict[str, np.ndarray]:
    """A detector's input batch with one image of noise: float32 [1, 3, H, W], sizes [1, 2]."""
    image = np.random.default_rng(seed).normal(size=(1, 3, *image_size_hw)).astype("float32")
    return {
        "image": image,
        "im_shape": np.array([image_size_hw], "float32"),
        "scale_factor": np.ones((1, 2), "float32"),
    }

"""AP on WIDER FACE: one pass over sorted detections against the loop over 1,000 thresholds.

    python benchmarks/bm_widerface.py [--ground_truth DIR] [--images 400] [--seed 0]

Noisy detections are made from the official faces of all 3,226 images, about 200 per image: moved
and missing faces, duplicates, false ones. They are written as text, read and scored. The loop over
images, settings and thresholds, as in the official definition, runs on the first `--images` images
(0: all). slim_det scores the same images in the same process, and both must find the same AP. Both
have the detections in memory and use one thread.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from slim_det.core.errors import SlimDetError  # noqa: E402
from slim_det.evaluate.widerface.files import read_predictions, write_prediction  # noqa: E402
from slim_det.evaluate.widerface.scores import WiderFaceResult, score_predictions  # noqa: E402
from slim_det.evaluate.widerface.truth import GroundTruth, read_ground_truth  # noqa: E402
from slim_det.version import __version__  # noqa: E402

GROUND_TRUTH = ROOT.parent / "shared" / "data" / "wider_face_ground_truth"


def main() -> None:
    """Time the parts and both sides, and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ground_truth", default=GROUND_TRUTH, metavar="DIR")
    parser.add_argument("--images", type=int, default=400, help="images of the loop; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    args = parser.parse_args()
    print(
        f"slim_det {__version__}, python {platform.python_version()}, numpy {np.__version__}, "
        f"{platform.machine()} CPU, one thread"
    )
    try:
        truth, seconds = timed(read_ground_truth, args.ground_truth)
    except SlimDetError as error:
        print(f"bm_widerface: {error}; nothing measured")
        return
    print(f"ground truth of {len(truth.names)} images: {seconds:.2f} s")
    rng = np.random.default_rng(args.seed)
    found = [noisy(rng, faces) for faces in truth.faces]
    total = sum(map(len, found))
    found, seconds = through_files(truth, found)
    print(f"{total} detections, {total / len(found):.0f} per image, read in {seconds:.2f} s")
    result, _ = timed(score, truth, found)
    print(result)
    count = args.images or len(found)
    part, ours = timed(score, truth, found[:count])
    looped, theirs = timed(loop, truth, found[:count])
    gap = max(abs(a - b) for a, b in zip((part.easy, part.medium, part.hard), looped))
    print(
        f"{part.num_images} images: slim_det {ours:.3f} s, loop {theirs:.1f} s, "
        f"ratio {theirs / ours:.0f}x; largest difference of AP {gap:.1e}"
    )


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    """What a function returns, and its seconds."""
    start = time.perf_counter()
    result = function(*arguments)
    return result, time.perf_counter() - start


def noisy(rng: np.random.Generator, faces: np.ndarray) -> np.ndarray:
    """Detections of one image, best first: float64 [n, 5], x y w h in pixels, score."""
    kept = faces[rng.random(len(faces)) < 0.85]
    parts = []
    for noise, share in ((0.08, 1.0), (0.15, 0.4), (0.25, 0.3)):
        chosen = kept[rng.random(len(kept)) < share]
        size = np.maximum(chosen[:, 2:], 1.0)
        place = chosen[:, :2] + size * rng.normal(0, noise, size.shape)
        scores = rng.beta(4, 2, len(chosen)) * np.clip(size[:, 1] / 40, 0.3, 1.0)
        parts.append(np.c_[place, size * np.exp(rng.normal(0, noise, size.shape)), scores])
    false = max(int(rng.integers(100, 301)) - sum(map(len, parts)), 5)
    sizes = np.exp(rng.normal(3, 0.8, (false, 2)))
    parts.append(np.c_[rng.random((false, 2)) * (1000, 700), sizes, rng.beta(1, 6, false)])
    rows = np.concatenate(parts)
    return rows[np.argsort(-rows[:, 4])]


def through_files(truth: GroundTruth, found: list[np.ndarray]) -> tuple[list[np.ndarray], float]:
    """The detections as they come back from text, and the seconds of the reading."""
    with tempfile.TemporaryDirectory() as folder:
        for name, rows in zip(truth.names, found):
            write_prediction(folder, name, rows)
        read, seconds = timed(dict, read_predictions(folder, truth.names))
    return [read[name] for name in truth.names], seconds


def score(truth: GroundTruth, found: list[np.ndarray]) -> WiderFaceResult:
    """slim_det's way."""
    count = len(found)
    part = GroundTruth(truth.names[:count], truth.faces[:count], truth.counted[:count], truth.bands)
    return score_predictions(part, zip(part.names, found))


def loop(truth: GroundTruth, found: list[np.ndarray]) -> list[float]:
    """AP of the three settings, literally as defined."""
    every = np.concatenate([rows[:, 4] for rows in found])
    low, spread = every.min(), every.max() - every.min()
    values = []
    for setting in range(3):
        pooled, total = np.zeros((1000, 2)), 0
        for rows, faces, counted in zip(found, truth.faces, truth.counted):
            total += int(counted[setting].sum())
            if len(rows) and len(faces):
                pooled += loop_image(rows, (rows[:, 4] - low) / spread, faces, counted[setting])
        precision = pooled[:, 0] / np.maximum(pooled[:, 1], 1)
        recall = pooled[:, 0] / total
        area, reached = 0.0, 0.0
        for t in range(1000):
            area += (recall[t] - reached) * precision[t:].max()
            reached = recall[t]
        values.append(area)
    return values


def loop_image(
    rows: np.ndarray, scores: np.ndarray, faces: np.ndarray, counted: np.ndarray
) -> np.ndarray:
    """Faces found and detections that count, of one image at each threshold: [1000, 2]."""
    far, face_far = rows[:, :2] + rows[:, 2:4], faces[:, :2] + faces[:, 2:]
    taken = np.zeros(len(faces), bool)
    counts = np.ones(len(rows), bool)
    recalled = np.zeros(len(rows))
    for d in range(len(rows)):
        sides = np.minimum(far[d], face_far) - np.maximum(rows[d, :2], faces[:, :2]) + 1
        shared = np.where((sides > 0).all(axis=1), sides.prod(axis=1), 0.0)
        areas = (rows[d, 2:4] + 1).prod() + (faces[:, 2:] + 1).prod(axis=1)
        ious = shared / (areas - shared)
        best = ious.argmax()
        if ious[best] >= 0.5 and not counted[best]:
            counts[d] = False
        elif ious[best] >= 0.5:
            taken[best] = True
        recalled[d] = taken.sum()
    curve = np.zeros((1000, 2))
    for t in range(1000):
        passing = np.where(scores >= 1 - (t + 1) / 1000)[0]
        if len(passing):
            curve[t] = recalled[passing[-1]], counts[: passing[-1] + 1].sum()
    return curve


if __name__ == "__main__":
    main()

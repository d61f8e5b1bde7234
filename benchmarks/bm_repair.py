"""Choosing channels and repairing layers against the plain way.

    python benchmarks/bm_repair.py [-c CONFIG] [--slim_config FILE] [-o KEY=VALUE ...] [--sample 3]

The parts of `slim-det prune` are timed one after the other, without reading the model and without
evaluation, with the peak memory of the process. The plain way does without what makes the
elimination fast: every removal changes the complete inverse and the complete weights at once, and
then the costs of all units are found again. It is timed for a sample of groups, on the same
statistics; nearly all of its channels must be the same.
"""

import argparse
import os
import platform
import random
import resource
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CONFIG = "configs/yolov3/yolov3_mobilenet_v1_bccd.yml"
SLIM = "configs/yolov3/prune_r578_repair.yml"


def main() -> None:
    """Time both ways and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-c", "--config", default=CONFIG)
    parser.add_argument("-o", "--opt", nargs="*", default=[], help="e.g. weights=PATH")
    parser.add_argument("--slim_config", default=SLIM)
    parser.add_argument("--sample", type=int, default=3, help="groups for the plain way")
    parser.add_argument("--seed", type=int, default=0, help="which of them")
    args = parser.parse_args()
    from slim_det.core.process import prepare_process

    prepare_process()
    import paddle

    print(
        f"python {platform.python_version()}, paddle {paddle.__version__}, {platform.machine()} "
        f"CPU, {os.cpu_count()} cores, {args.config}, {args.slim_config}"
    )
    os.chdir(ROOT)
    measure(args)


def measure(args: argparse.Namespace) -> None:
    """Run the parts of the command in this process."""
    from ppdet.core.workspace import create

    from slim_det.compress.prune.groups import find_groups
    from slim_det.compress.prune.plan import apply_plan
    from slim_det.compress.prune.ratios import units_removed
    from slim_det.compress.prune.reconstruct.reconstruction import reconstruction_of
    from slim_det.compress.prune.requests import select_groups
    from slim_det.detectors.image_size import image_size_hw
    from slim_det.detectors.layer_finder import LayerFinder
    from slim_det.graph.trace import trace_detector
    from slim_det.training import session
    from slim_det.training.config import apply_overrides, load_config

    cfg = load_config(args.config, args.opt)
    session.read_slim(args.slim_config)
    apply_overrides(args.opt)
    session.set_device(cfg)
    pruner = create("Pruner")
    model = session.model_with_weights(cfg, cfg.get("weights"))
    clock = Clock()
    trace = trace_detector(model, image_size_hw(cfg))
    groups = find_groups(model, trace)
    ratios = select_groups(pruner.requests, LayerFinder(model), groups)
    counts = {n: units_removed(len(groups.groups[n].units), r) for n, r in ratios.items()}
    images = reconstruction_of(model, trace, groups, cfg, pruner.calibration, pruner.seed)
    with images as reconstruction:
        clock.lap("trace the model and read the images")
        reconstruction.observe(list(ratios), choose=True, repair=True)
        clock.lap(f"run the unpruned model on {reconstruction.images} images")
        scores, seconds = {}, {}
        for name in ratios:
            start = time.perf_counter()
            scores[name] = reconstruction.scores(groups.groups[name], counts[name])
            seconds[name] = time.perf_counter() - start
        clock.lap(f"eliminate in {len(ratios)} groups")
        plain = time_plain(reconstruction, groups, counts, scores, args)
        clock.skip()
        plan = pruner.plan(model, trace, groups, ratios, lambda group, _: scores[group.name])
        apply_plan(model, plan)
        clock.lap("cut")
        repair = reconstruction.repair(model, plan)
        clock.lap(f"repair {len(repair.layers)} layers and restate batch norms")
    print(f"in all: {clock.total:.1f} s")
    if plain:
        ratio = sum(plain.values()) / sum(seconds[name] for name in plain)
        print(f"elimination, on {len(plain)} groups: {ratio:.1f}x as fast as the plain way")


def time_plain(
    reconstruction: Any,
    groups: Any,
    counts: dict[str, int],
    scores: dict[str, np.ndarray],
    args: argparse.Namespace,
) -> dict[str, float]:
    """Seconds of the plain way for a sample of groups, and how many channels are the same."""
    from slim_det.compress.prune.reconstruct import elimination, readers

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory so far: {peak:.2f} GB")
    sample = random.Random(args.seed).sample(list(counts), min(args.sample, len(counts)))
    plain = {}
    every_time = mock.patch.object(elimination, "_PERIOD", 1)
    with mock.patch.object(readers, "Reader", PlainReader), every_time:
        for name in sample:
            start = time.perf_counter()
            found = reconstruction.scores(groups.groups[name], counts[name])
            plain[name] = time.perf_counter() - start
            same = len(np.intersect1d(_removed(found), _removed(scores[name])))
            print(
                f"  plain {name}: {plain[name]:.1f} s, {same} of {counts[name]} channels as above"
            )
    return plain


def _removed(scores: np.ndarray) -> np.ndarray:
    return np.flatnonzero(np.isfinite(scores))


class PlainReader:
    """The formulas of `docs/repair.md` as they stand: one update of H^-1 and W for each removal."""

    def __init__(
        self, moment: np.ndarray, weights: np.ndarray, rows: np.ndarray, ridge: float
    ) -> None:
        energy = float(np.einsum("dm,dm->", weights, moment @ weights))
        penalty = ridge * np.trace(moment) / len(moment)
        self.scale = 1.0 / energy if energy > 0.0 and penalty > 0.0 else 0.0
        self.rows = [one[one >= 0] for one in rows]
        self.weights = weights.copy()
        if self.scale:
            self.inverse = np.linalg.inv(moment + penalty * np.eye(len(moment)))

    def settle(self) -> None:
        """Nothing waits."""

    def costs(self, units: np.ndarray) -> np.ndarray:
        """Growth of the relative squared error if one of these units is removed."""
        return np.array([self.cost(self.rows[unit]) if self.scale else 0.0 for unit in units])

    def cost(self, rows: np.ndarray) -> float:
        """The same for some rows."""
        pivot, own = self.inverse[np.ix_(rows, rows)], self.weights[rows]
        return self.scale * float(np.vdot(own, np.linalg.solve(pivot, own)))

    def remove(self, unit: int) -> None:
        """Remove a unit."""
        rows = self.rows[unit]
        if not self.scale or not len(rows):
            return
        columns = self.inverse[:, rows]
        pivot = np.linalg.inv(columns[rows])
        self.weights -= columns @ (pivot @ self.weights[rows])
        self.inverse -= columns @ pivot @ columns.T


class Clock:
    """Prints how long each part took."""

    def __init__(self) -> None:
        self.total = 0.0
        self._start = time.perf_counter()

    def lap(self, label: str) -> None:
        """End a part."""
        seconds = time.perf_counter() - self._start
        self.total += seconds
        print(f"{label}: {seconds:.1f} s", flush=True)
        self.skip()

    def skip(self) -> None:
        """Leave out what happened since the last part."""
        self._start = time.perf_counter()


if __name__ == "__main__":
    main()

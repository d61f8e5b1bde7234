"""The sensitivity command against the plain loop: one complete evaluation for every point.

    python benchmarks/bm_sensitivity.py [--sample 20] [--workers 2]

Both run one after the other. For each point the plain loop prunes the trained model and evaluates
it in dygraph on one thread, PaddleSlim's default. Only a sample of its points is timed and
extrapolated. The start-up time counts for the command but not for the loop. For every sampled
point, the AP of the pruned model must be the AP that the command found.
"""

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CONFIG = "configs/yolov3/yolov3_mobilenet_v1_bccd.yml"


def main() -> None:
    """Time both sides and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-c", "--config", default=CONFIG)
    parser.add_argument("--sample", type=int, default=20, help="points of the plain loop")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="which points are sampled")
    parser.add_argument("--plain", metavar="POINTS", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.plain:
        run_plain(args.config, json.loads(args.plain))
        return
    import paddle

    print(
        f"python {platform.python_version()}, paddle {paddle.__version__}, {platform.machine()} "
        f"CPU, {os.cpu_count()} cores, {args.config}"
    )
    with tempfile.TemporaryDirectory() as folder:
        found, seconds = run_command(args.config, args.workers, Path(folder) / "found.json")
    points = [(name, float(r)) for name, row in found["ap"].items() for r in row]
    sample = random.Random(args.seed).sample(points, min(args.sample, len(points)))
    print(f"slim-det sensitivity --workers {args.workers}: {len(points)} points, {seconds:.1f} s")
    plain = time_plain(args.config, sample)
    cutting, evaluating = (
        sum(row[key] for row in plain) / len(plain) for key in ("cut_seconds", "eval_seconds")
    )
    each = cutting + evaluating
    print(
        f"plain loop: {each:.2f} s a point over {len(plain)} points ({cutting:.2f} s to cut, "
        f"{evaluating:.2f} s to evaluate; dygraph, one thread), {each * len(points):.0f} s for all "
        f"{len(points)} (computed)"
    )
    worst = max(abs(row["ap"] - found["ap"][row["group"]][row["key"]]) for row in plain)
    print(f"largest difference of AP over {len(plain)} points: {worst:.2e}")
    print(
        f"ratio: {each * len(points) / seconds:.1f}x; to the loop's evaluations alone "
        f"{evaluating * len(points) / seconds:.1f}x"
    )


def run_command(config: str, workers: int, output: Path) -> tuple[dict, float]:
    """Result and seconds of the public command as a user runs it, start-up included."""
    command = [sys.executable, "-m", "slim_det.cli", "sensitivity", "-c", config]
    start = time.perf_counter()
    subprocess.run(
        [*command, "--workers", str(workers), "--output", str(output)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return json.loads(output.read_text(encoding="utf-8")), time.perf_counter() - start


def time_plain(config: str, sample: list[tuple[str, float]]) -> list[dict]:
    """Evaluate each point alone, in one process with one thread."""
    done = subprocess.run(
        [sys.executable, __file__, "-c", config, "--plain", json.dumps(sample)],
        cwd=ROOT,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def run_plain(config: str, points: list[tuple[str, float]]) -> None:
    """Prune the model and evaluate it, point after point."""
    from slim_det.core.process import prepare_process

    prepare_process()
    from slim_det.compress.prune.pruner import Pruner
    from slim_det.compress.strategy import Context
    from slim_det.detectors.image_size import image_size_hw
    from slim_det.evaluate.evaluation import dygraph_predictor, evaluate
    from slim_det.training import session
    from slim_det.training.config import load_config

    for group, ratio in points:
        cfg = load_config(config)
        session.set_device(cfg)
        start = time.perf_counter()
        model = session.model_with_weights(cfg, cfg.weights)
        cut = Pruner(pruned_ratios={group: ratio})(model, Context(cfg, image_size_hw(cfg)))
        cut_seconds = time.perf_counter() - start
        result = evaluate(cfg, dygraph_predictor(cut), "dygraph", latency_runs=1)
        row = {
            "group": group,
            "key": str(ratio),
            "ap": result.ap,
            "cut_seconds": cut_seconds,
            "eval_seconds": time.perf_counter() - start - cut_seconds,
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

"""What simulating int8 costs: one training step of a detector in float and quantized.

    python benchmarks/bm_qat.py [--steps 10] [-c CONFIG] [--slim_config FILE]

In one process, each batch is used for a step (forward, backward, optimizer) of the float model and
for one of a second model, quantized as in the slim file. The ratio is that of the medians.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Callable

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from slim_det.core.process import prepare_process  # noqa: E402

CONFIG = "configs/yolov3/yolov3_mobilenet_v1_bccd.yml"
SLIM = "configs/yolov3/qat.yml"


def main() -> None:
    """Time both, in turns, and print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-c", "--config", default=CONFIG)
    parser.add_argument("--slim_config", default=SLIM)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    prepare_process()

    import paddle
    from ppdet.engine import Trainer

    from slim_det.training import session
    from slim_det.training.config import load_config

    cfg = load_config(args.config, ["worker_num=0"])
    session.set_device(cfg)
    slim = session.read_slim(args.slim_config)
    trainers = {}
    for name, asked in (("float step", None), ("quantized step", slim)):
        cfg["model"] = session.model_for_training(cfg, asked)
        trainers[name] = Trainer(cfg, mode="train")
        trainers[name].model.train()
    batches = list(trainers["float step"].loader)[: args.steps + 1]
    print(
        f"python {platform.python_version()}, paddle {paddle.__version__}, {platform.machine()} "
        f"CPU, {os.environ.get('OMP_NUM_THREADS', 'default')} threads, {args.config}, "
        f"{args.slim_config}, batches of {cfg['TrainReader']['batch_size']}, "
        f"images of {[list(batch['image'].shape[2:]) for batch in batches[1:4]]}"
    )
    report(batches, {name: stepper(trainer) for name, trainer in trainers.items()})


def stepper(trainer: Any) -> Callable[[Any], None]:
    """One step of a trainer on a batch."""

    def step(batch: Any) -> None:
        trainer.model(batch)["loss"].backward()
        trainer.optimizer.step()
        trainer.optimizer.clear_grad()

    return step


def report(batches: list[Any], parts: dict[str, Callable[[Any], None]]) -> None:
    """Run every part on every batch; the first batch is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for number, batch in enumerate(batches):
        for name, run in parts.items():
            start = time.perf_counter()
            run(batch)
            if number:
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.3f} s (median of {len(seconds[name])})")
    alone, quantized = medians.values()
    print(f"ratio of the quantized step to the float step: {quantized / alone:.3f}")


if __name__ == "__main__":
    main()

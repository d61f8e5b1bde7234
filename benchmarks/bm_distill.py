"""What a teacher costs: one training step of a student alone and with its teacher.

    python benchmarks/bm_distill.py [--steps 10] [-c CONFIG] [--slim_config FILE]

In one process, each batch is used for three things: a step of the student alone (forward, backward,
optimizer), the teacher's forward pass up to its raw outputs in evaluation mode without autograd,
and a distilled step. The ratio is that of the distilled step to the sum of the other two.
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
SLIM = "configs/yolov3/prune_r578_distill_split_bccd.yml"


def main() -> None:
    """Time the three, in turns, and print medians and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-c", "--config", default=CONFIG)
    parser.add_argument("--slim_config", default=SLIM)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    prepare_process()

    import paddle
    from ppdet.engine import Trainer

    from slim_det.compress.distill.distiller import distiller_of
    from slim_det.detectors.yolov3_outputs import forward_without_boxes
    from slim_det.training import session
    from slim_det.training.config import load_config

    cfg = load_config(args.config, ["worker_num=0"])
    session.set_device(cfg)
    cfg["model"] = model = session.model_for_training(cfg, session.read_slim(args.slim_config))
    trainer = Trainer(cfg, mode="train")
    distiller = distiller_of(model)
    assert distiller is not None
    batches = list(trainer.loader)[: args.steps + 1]
    model.train()

    def step(batch: Any) -> None:
        model(batch)["loss"].backward()
        trainer.optimizer.step()
        trainer.optimizer.clear_grad()

    def alone(batch: Any) -> None:
        distiller.detach()
        try:
            step(batch)
        finally:
            distiller.attach()

    def teach(batch: Any) -> None:
        with paddle.no_grad():
            forward_without_boxes(distiller.teacher, batch)

    print(
        f"python {platform.python_version()}, paddle {paddle.__version__}, {platform.machine()} "
        f"CPU, {os.environ.get('OMP_NUM_THREADS', 'default')} threads, {args.config}, "
        f"{args.slim_config}, batches of {cfg['TrainReader']['batch_size']}"
    )
    report(batches, {"student step": alone, "teacher forward": teach, "distilled step": step})


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
    student, teacher, distilled = medians.values()
    print(f"ratio of the distilled step to the sum: {distilled / (student + teacher):.3f}")


if __name__ == "__main__":
    main()

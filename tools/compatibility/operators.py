"""Writes which operator types the detectors of PaddleDetection consist of.

    python tools/compatibility/operators.py PADDLEDETECTION FILE [--only TEXT ...]

Each family of `families.py` that the checkout has is built and traced as `slim-det inspect` does
it. FILE is JSON: family -> the types of all its operators, and of those without an entry in the
operator table that read channels that are followed. The tests compare the table with
`tests/graph/operator_types.json`, which this command wrote.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
from pathlib import Path

from families import FAMILIES


def operator_types(config: str) -> dict[str, list[str]]:
    """Trace the detector of a configuration; the types of its operators, as FILE has them."""
    import slim_det  # noqa: F401  (before ppdet, as in every command)
    from slim_det.detectors.image_size import image_size_hw
    from slim_det.graph.operators import OPERATORS
    from slim_det.graph.propagation import follow_channels
    from slim_det.graph.trace import trace_detector
    from slim_det.training.config import load_config
    from slim_det.training.session import build_model

    cfg = load_config(config, ["use_gpu=false", "pretrain_weights="])
    trace = trace_detector(build_model(cfg), image_size_hw(cfg, None))
    channels = follow_channels(trace).channels
    stopping = {
        op.type
        for op in trace.ops
        if op.type not in OPERATORS and any(channels.get(name) for name in op.input_arg_names)
    }
    return {"all": sorted({op.type for op in trace.ops}), "stopping": sorted(stopping)}


def main() -> int:
    """Trace every family in a process of its own, as ppdet has one configuration per process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paddledetection", type=Path, help="a checkout of release/2.6")
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names of families")
    args = parser.parse_args()
    configs = args.paddledetection.absolute() / "configs"
    if not (configs / "datasets").is_dir():
        print(f"error: '{args.paddledetection}' is no checkout of PaddleDetection", file=sys.stderr)
        return 2
    chosen = [f for f in FAMILIES if any(text in f.name for text in args.only)]
    families = {f.name: str(configs / f.config) for f in chosen if (configs / f.config).is_file()}
    pool = multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1)
    types = pool.map(operator_types, families.values(), chunksize=1)
    pool.close()
    pool.join()
    lines = (f"{json.dumps(name)}: {json.dumps(kinds)}" for name, kinds in zip(families, types))
    args.file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

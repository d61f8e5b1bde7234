"""Two processes train one model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import paddle

from tests.commands import ROOT, process_environment


def test_two_processes_save_one_checkpoint(tiny: Path, r578: Path, tmp_path: Path) -> None:
    """On CPUs paddle joins them with gloo; both cut alike, the first saves."""
    launch = ("-m", "paddle.distributed.launch", "--nproc_per_node", "2", "--log_dir", "logs")
    train = ("-c", tiny, "--slim_config", r578, "--eval")
    overrides = ("-o", f"save_dir={tmp_path}", "TrainReader.batch_size=4")
    done = subprocess.run(
        [sys.executable, *launch, *map(str, (ROOT / "tools" / "train.py", *train, *overrides))],
        cwd=tmp_path,
        env=process_environment(PADDLE_DISTRI_BACKEND="gloo"),
        capture_output=True,
        text=True,
        timeout=300,
    )
    first, second = ((tmp_path / "logs" / f"workerlog.{i}").read_text() for i in range(2))
    assert done.returncode == 0, first + second
    assert first.count("pruned 18 groups") == second.count("pruned 18 groups") == 1
    assert "[0/2]" in first and "saved " in first and "saved " not in second
    stem = tmp_path / "tiny" / "model_final"
    assert len(list(stem.parent.glob("*.plan.json"))) == 2  # of the last and of the best model
    plan = json.loads(Path(f"{stem}.plan.json").read_text())
    state = paddle.load(f"{stem}.pdparams", return_numpy=True)
    assert sum(v.size for v in state.values()) == plan["cost"]["after"]["params"]

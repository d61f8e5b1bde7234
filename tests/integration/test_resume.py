"""Training that goes on from a checkpoint: after its end, after a kill, with another model."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from tests.commands import Outcome, command, process_environment

TIMEOUT_S = 240

Cli = Callable[..., Outcome]


def slots(stem: Path) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor of an optimizer's state."""
    state = paddle.load(f"{stem}.pdopt", return_numpy=True)
    return {key: value.shape for key, value in state.items() if isinstance(value, np.ndarray)}


def settings(stem: Path) -> dict[str, Any]:
    """What else an optimizer's state holds."""
    state = paddle.load(f"{stem}.pdopt", return_numpy=True)
    return {key: value for key, value in state.items() if not isinstance(value, np.ndarray)}


def test_two_epochs_straight_or_in_two_runs(
    cli: Cli, tiny: Path, r578: Path, trained: Path, tmp_path: Path
) -> None:
    """The same tensors, slots and step counter; only epoch 1 is run after resuming."""
    straight = ("--slim_config", r578, "-o", "epoch=2", f"save_dir={tmp_path / 'straight'}")
    assert cli("train", "-c", tiny, *straight).code == 0
    again = ("-r", trained, "-o", "epoch=2", f"save_dir={tmp_path / 'again'}")
    run = command("train", "-c", tiny, *again, cwd=tmp_path)
    assert run.code == 0, run.err
    assert "at epoch 1" in run.out and "Epoch: [1] [0/2]" in run.out
    assert "Epoch: [0]" not in run.out
    left, right = (tmp_path / name / "tiny" / "model_final" for name in ("straight", "again"))
    assert slots(left) == slots(right)
    assert settings(left)["LR_Scheduler"]["last_epoch"] == 4
    assert settings(left) == settings(right)
    plans = {Path(f"{stem}.plan.json").read_text() for stem in (right, trained)}
    assert len(plans) == 1


def test_unpruned_checkpoint_is_pruned_with_its_state(
    cli: Cli, tiny: Path, r578: Path, tmp_path: Path
) -> None:
    """`-r` of an unpruned model with a slim file: momentum is cut like the weights."""
    saved = f"save_dir={tmp_path}"
    assert cli("train", "-c", tiny, "-o", saved, "epoch=2", "snapshot_epoch=1").code == 0
    stem = tmp_path / "tiny" / "0"
    resumed = ("-r", stem, "--slim_config", r578, "-o", saved, "epoch=2")
    run = cli("train", "-c", tiny, *resumed)
    assert run.code == 0, run.err
    assert "at epoch 1" in run.out
    before, after = slots(stem), slots(tmp_path / "tiny" / "model_final")
    assert before.keys() == after.keys()
    changed = [key for key in before if before[key] != after[key]]
    assert len(changed) > 54 and all(key.endswith("_velocity_0") for key in changed)
    weights = paddle.load(str(tmp_path / "tiny" / "model_final.pdparams"), return_numpy=True)
    assert weights["neck.yolo_block.0.tip.conv.weight"].shape == (128, 64, 3, 3)


def test_moving_average_is_cut_and_resumed(
    cli: Cli, tiny: Path, r578: Path, tmp_path: Path
) -> None:
    """`use_ema`: the average is what is evaluated and saved; training goes on from the rest."""
    saved = ("-o", "use_ema=true", f"save_dir={tmp_path}", "epoch=2")
    run = cli("train", "-c", tiny, "--slim_config", r578, "--eval", *saved)
    assert run.code == 0, run.err
    stem = tmp_path / "tiny" / "0"
    average, trained = (
        paddle.load(f"{stem}{suffix}", return_numpy=True) for suffix in (".pdparams", ".pdema")
    )
    name = "neck.yolo_block.2.tip.conv.weight"
    assert average[name].shape == trained[name].shape == (13, 6, 3, 3)
    assert not np.array_equal(average[name], trained[name])
    run = cli("train", "-c", tiny, "-r", stem, "--eval", *saved)
    assert run.code == 0, run.err
    assert "at epoch 1" in run.out and "AP 0." in run.out
    assert cli("eval", "-c", tiny, "-o", f"weights={stem}").code == 0


def test_killed_while_saving(tiny: Path, r578: Path, tmp_path: Path) -> None:
    """SIGKILL at the moment a temporary file appears; the last snapshot is complete."""
    folder = tmp_path / "tiny"
    overrides = ["-o", f"save_dir={tmp_path}", "epoch=1000", "log_iter=100"]
    arguments = ["train", "-c", str(tiny), "--slim_config", str(r578), *overrides]
    process = subprocess.Popen(
        [sys.executable, "-m", "slim_det.cli", *arguments],
        cwd=tmp_path,
        env=process_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: (folder / "1.pdparams").is_file(), process)
        wait_for(lambda: any(folder.glob(".*.tmp")), process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    (folder / ".model_final.pdparams.zzzz.tmp").write_bytes(b"cut short")
    epochs = [int(path.stem) for path in folder.glob("*.pdparams")]
    last = max(epochs)
    assert sorted(epochs) == list(range(last + 1)) and last >= 1
    for suffix in (".pdopt", ".plan.json"):
        assert (folder / f"{last}{suffix}").is_file()
    resumed = ("-r", folder / str(last), "-o", f"save_dir={tmp_path}", f"epoch={last + 2}")
    run = command("train", "-c", tiny, *resumed, cwd=tmp_path)
    assert run.code == 0, run.err
    assert f"at epoch {last + 1}" in run.out
    assert set(re.findall(r"Epoch: \[(\d+)\]", run.out)) == {str(last + 1)}
    assert (folder / "model_final.plan.json").is_file()
    assert (folder / ".model_final.pdparams.zzzz.tmp").read_bytes() == b"cut short"


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Look every half millisecond, as long as the process lives."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            pytest.fail(f"training ended with {process.poll()} before it could be killed")
        time.sleep(0.0005)

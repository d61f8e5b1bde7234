"""Pruning in steps with training between them, and pruning again, with the real commands."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import yaml

from tests.commands import Outcome, command, done, files_below, process_environment
from tests.integration.test_resume import wait_for

Cli = Callable[..., Outcome]

SCRIPT = Path(__file__).with_name("train_script.py")
STEPS = ("0", "1", "model_final")
"""Checkpoints of three epochs, each of which begins with a step."""

TIP = "neck.yolo_block.0.tip.conv.weight"
WIDTHS = [203, 161, 128]
"""Channels of its 256 that three steps leave on the way to a half: 256 / 2 ** (k / 3), rounded."""


@pytest.fixture(scope="module")
def ordered(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """The tiny detector with the same batches in every epoch, whatever random state there is."""
    content = yaml.safe_load(tiny.read_text(encoding="utf-8"))
    reader = content["TrainReader"]
    reader.update(shuffle=False, sample_transforms=[{"Decode": {}}])
    reader["batch_transforms"][0]["BatchRandomResize"]["random_interp"] = False
    path = tmp_path_factory.mktemp("ordered") / "tiny.yml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def slim_file(path: Path, **pruner: Any) -> Path:
    """A slim file that removes half of a YOLOv3 head; its settings can be changed."""
    settings = {"pruned_params": "yolo_head", "pruned_ratios": 0.5, **pruner}
    path.write_text(yaml.safe_dump({"slim": "Pruner", "Pruner": settings}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def in_steps(ordered: Path) -> Path:
    return slim_file(ordered.with_name("in_steps.yml"), schedule={"steps": 3, "epochs": 1})


@pytest.fixture(scope="module")
def straight(ordered: Path, in_steps: Path, unpruned: Path) -> Path:
    """Folder of an unbroken training in three steps, by a script that knows ppdet only."""
    overrides = (f"save_dir={ordered.parent}", f"pretrain_weights={unpruned}.pdparams", "epoch=3")
    run = done(
        command(
            *("-c", ordered, "--slim_config", in_steps, "--eval", "-o", *overrides),
            script=SCRIPT,
            cwd=ordered.parent,
        )
    )
    for step in (2, 3):
        assert f"epoch {step - 1}: step {step} of 3 of pruning" in run.out
    return ordered.parent / "tiny"


def weights(stem: Path) -> dict[str, np.ndarray]:
    return paddle.load(f"{stem}.pdparams", return_numpy=True)


def plan(stem: Path) -> dict[str, Any]:
    return json.loads(Path(f"{stem}.plan.json").read_text())


def assert_same_end(left: Path, right: Path) -> None:
    """The same plan, and weights that only differ by the order of sums."""
    assert plan(left) == plan(right)
    expected = weights(right)
    for name, value in weights(left).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_each_checkpoint_has_one_plan(straight: Path) -> None:
    """Against the unpruned model; the end has the channels of a single cut."""
    plans = [plan(straight / name) for name in STEPS]
    assert [p["settings"]["schedule"]["done"] for p in plans] == [1, 2, 3]
    assert len({p["fingerprint"] for p in plans}) == 1
    assert [weights(straight / name)[TIP].shape[0] for name in STEPS] == WIDTHS
    assert all(p["tensors"] == plans[0]["tensors"] for p in plans)
    assert plans[2]["cost"]["before"] == plans[0]["cost"]["before"]
    assert len(plans[2]["groups"]) == 18 and "earlier" not in plans[2]["settings"]
    slots = paddle.load(str(straight / "model_final.pdopt"), return_numpy=True)
    shapes = {value.shape for value in weights(straight / "model_final").values()}
    assert {v.shape for v in slots.values() if isinstance(v, np.ndarray)} <= shapes


def test_the_end_is_an_ordinary_checkpoint(cli: Cli, ordered: Path, straight: Path) -> None:
    """The pruned model is the masked one; the best model is one of the last size."""
    stem = straight / "model_final"
    run = done(cli("verify", "-c", ordered, "-o", f"weights={stem}"))
    assert run.out.count("pass") == 4
    assert plan(straight / "best_model") == plan(stem)


def test_killed_in_the_middle_and_resumed(
    cli: Cli, ordered: Path, in_steps: Path, straight: Path, unpruned: Path, tmp_path: Path
) -> None:
    """SIGKILL after the second step, while the third is made or trained."""
    folder = tmp_path / "tiny"
    overrides = [f"save_dir={tmp_path}", f"pretrain_weights={unpruned}", "epoch=3"]
    process = subprocess.Popen(
        [sys.executable, "-m", "slim_det.cli", "train", "-c", str(ordered)]
        + ["--slim_config", str(in_steps), "-o", *overrides],
        cwd=tmp_path,
        env=process_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(lambda: (folder / "1.pdparams").is_file(), process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (folder / "model_final.pdparams").exists()
    assert plan(folder / "1")["settings"]["schedule"]["done"] == 2
    resumed = ("-r", folder / "1", "-o", f"save_dir={tmp_path}", "epoch=3")
    run = done(cli("train", "-c", ordered, *resumed))
    assert "epoch 2: step 3 of 3 of pruning" in run.out + run.err
    assert_same_end(folder / "model_final", straight / "model_final")


def test_a_script_goes_on_with_the_steps(ordered: Path, straight: Path, tmp_path: Path) -> None:
    """Resumed after the first; the plan and its schedule come with the checkpoint."""
    overrides = ("-o", f"save_dir={tmp_path}", "epoch=3")
    run = done(
        command("-c", ordered, "-r", straight / "0", *overrides, script=SCRIPT, cwd=tmp_path)
    )
    assert "epoch 1: step 2 of 3 of pruning" in run.out
    assert_same_end(tmp_path / "tiny" / "model_final", straight / "model_final")


def test_the_weights_between_two_steps_are_weights(
    cli: Cli, ordered: Path, in_steps: Path, straight: Path, tmp_path: Path
) -> None:
    """They can be evaluated, also with the slim file, and trained as they are."""
    stem = straight / "0"
    for slim in ((), ("--slim_config", in_steps)):
        done(cli("eval", "-c", ordered, *slim, "-o", f"weights={stem}"))
    overrides = ("-o", f"save_dir={tmp_path}", f"pretrain_weights={stem}")
    done(cli("train", "-c", ordered, *overrides))
    assert weights(tmp_path / "tiny" / "model_final")[TIP].shape[0] == WIDTHS[0]


def test_steps_by_macs(cli: Cli, ordered: Path, unpruned: Path, tmp_path: Path) -> None:
    """30 % of the original MACs at a time, and what the ratios still ask for in the last step."""
    schedule = {"macs_per_step": 0.3, "epochs": 1, "restart_lr": True}
    by_macs = slim_file(tmp_path / "macs.yml", schedule=schedule)
    overrides = ("-o", f"save_dir={tmp_path}", f"pretrain_weights={unpruned}", "epoch=2")
    done(cli("train", "-c", ordered, "--slim_config", by_macs, *overrides))
    stems = [tmp_path / "tiny" / name for name in ("0", "model_final")]
    rates = [paddle.load(f"{stem}.pdopt")["LR_Scheduler"] for stem in stems]
    assert rates[0] == rates[1] and rates[1]["last_epoch"] == 2, "it starts again"
    first, last = (plan(stem)["cost"] for stem in stems)
    original = first["before"]["macs"]
    assert 0.69 <= first["after"]["macs"] / original <= 0.7
    assert weights(tmp_path / "tiny" / "model_final")[TIP].shape[0] == WIDTHS[-1]
    assert last["after"]["macs"] / original < 0.7 - 0.1


def test_again(cli: Cli, tiny: Path, trained: Path, tmp_path: Path) -> None:
    """Half of what r578 has left; without `again` it is refused, and the message says so."""
    start = ("-o", f"pretrain_weights={trained}", f"save_dir={tmp_path / 'saved'}")
    plainly = slim_file(tmp_path / "plainly.yml")
    again = slim_file(tmp_path / "again.yml", again=True)
    before = files_below(tmp_path)
    run = cli("train", "-c", tiny, "--slim_config", plainly, *start)
    assert run.code == 2 and len(run.err.splitlines()) == 1, run.err
    assert "was already cut, with l1_norm" in run.err and "Pruner.again: true" in run.err
    assert files_below(tmp_path) == before
    done(cli("train", "-c", tiny, "--slim_config", again, *start))
    stem = tmp_path / "saved" / "tiny" / "model_final"
    assert weights(stem)[TIP].shape == (64, 32, 3, 3)
    assert plan(stem)["settings"]["earlier"] == [plan(trained)["settings"]]
    assert plan(stem)["fingerprint"] == plan(trained)["fingerprint"]
    assert done(cli("verify", "-c", tiny, "-o", f"weights={stem}")).out.count("pass") == 4
    same = ("eval", "-c", tiny, "--slim_config", again, "-o")
    run = done(cli(*same, f"weights={stem}"))
    assert "is already cut as" in run.out + run.err
    run = done(cli(*same, f"weights={trained}"))
    assert "pruned 18 groups" in run.out + run.err, "the loss from cutting again is measured"


MISTAKES: list[tuple[dict[str, Any], tuple[str, ...], str]] = [
    ({"schedule": {"steps": 3, "epochs": 1}}, (), "3 steps of 1 epochs take 3 and epoch is 1; add"),
    ({"schedule": {"steps": 3}}, (), "expected epochs, and either steps or macs_per_step"),
    ({"schedule": {"steps": 3, "epochs": 1}}, ("epoch=3", "to_static=true"), "leave to_static out"),
    ({"again": "yes"}, (), "Pruner.again: 'yes' is not valid; expected true or false"),
    (
        {"pruned_ratios": 0.002, "schedule": {"steps": 2, "epochs": 1}},
        (),
        "step 1 of 2 would remove no channel",
    ),
]


@pytest.mark.parametrize(("pruner", "overrides", "message"), MISTAKES)
def test_mistakes(
    cli: Cli, tiny: Path, tmp_path: Path, pruner: Any, overrides: Any, message: str
) -> None:
    """One line, and nothing is written."""
    slim = slim_file(tmp_path / "slim.yml", **pruner)
    before = files_below(tmp_path)
    saved = f"save_dir={tmp_path / 'saved'}"
    run = cli("train", "-c", tiny, "--slim_config", slim, "-o", saved, *overrides)
    assert run.code == 2, run.err
    assert run.err.startswith("slim-det train: error: ") and len(run.err.splitlines()) == 1
    assert message in run.err
    assert files_below(tmp_path) == before

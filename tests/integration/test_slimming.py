"""Sparsity training as a user runs it, and the pruning that follows."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import yaml

from slim_det.compress.prune.plan import Plan
from tests.commands import CONFIGS, Outcome, done, files_below

Cli = Callable[..., Outcome]

COUNTED = r"epoch (\d+): (\d+) of (\d+) batch norm scales are at most 1 % of"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Path:
    """The tiny detector; every epoch sees the images alike, also in a run that is resumed."""
    reader = yaml.safe_load(tiny.read_text())["TrainReader"]
    reader.update(sample_transforms=[{"Decode": {}}], shuffle=False)
    reader["batch_transforms"][0]["BatchRandomResize"]["random_interp"] = False
    path = tmp_path_factory.mktemp("base") / "base.yml"
    content = {"_BASE_": [str(tiny)], "TrainReader": reader, "epoch": 2}
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def trained(cli: Cli, base: Path, folder: Path, *more: Any) -> tuple[Path, str]:
    """Stem of what a training leaves, and what it says."""
    saved = () if "-o" in more else ("-o",)
    run = done(cli("train", "-c", base, "--seed", 0, *more, *saved, f"save_dir={folder}"))
    return folder / "base" / "model_final", run.out


def tensors(stem: Path, suffix: str = ".pdparams") -> dict[str, np.ndarray]:
    state = paddle.load(f"{stem}{suffix}", return_numpy=True)
    return {name: value for name, value in state.items() if isinstance(value, np.ndarray)}


def same(left: Path, right: Path, suffix: str = ".pdparams") -> bool:
    """Whether a file of two checkpoints holds the same numbers, to the last bit."""
    ours, theirs = tensors(left, suffix), tensors(right, suffix)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[n], theirs[n]) for n in ours)


def slim(path: Path, sparsity: float) -> Path:
    content = {"slim": "Slim", "Slim": {"sparsity": sparsity, "params": "yolo_head"}}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def test_without_weight_it_is_plain_training(cli: Cli, base: Path, tmp_path: Path) -> None:
    """The same weights, optimizer state and files."""
    plain, _ = trained(cli, base, tmp_path / "plain")
    zero, log = trained(
        cli, base, tmp_path / "zero", "--slim_config", slim(tmp_path / "s.yml", 0.0)
    )
    assert same(plain, zero) and same(plain, zero, ".pdopt")
    assert [*files_below(plain.parent)] == [*files_below(zero.parent)]
    assert [found[::2] for found in re.findall(COUNTED, log)] == [("0", "2016"), ("1", "2016")]


def test_resumed_and_pruned(cli: Cli, base: Path, tmp_path: Path) -> None:
    """Two epochs straight or in two runs; then pruned by what is left of the energy."""
    file = slim(tmp_path / "s.yml", 4.0)
    straight, log = trained(cli, base, tmp_path / "one", "--slim_config", file)
    assert "the L1 penalty 4 acts on the scales of 18 batch norms" in log
    run = cli("eval", "-c", base, "--slim_config", file, "-o", f"weights={straight}")
    assert "acts on" not in done(run).out, "it is for training only"
    again = ("--slim_config", file, "-r", straight.with_name("0"))
    resumed, log = trained(cli, base, tmp_path / "two", *again)
    assert "at epoch 1" in log and same(straight, resumed)
    plain, _ = trained(cli, base, tmp_path / "two", *again[2:])
    name = "neck.yolo_block.0.tip.batch_norm.weight"
    sizes = [np.abs(tensors(stem)[name]).mean() for stem in (straight, plain)]
    assert sizes[0] < sizes[1]
    pruning = ("--slim_config", CONFIGS / "prune_bn_scale_energy.yml")
    chain = ("-o", f"pretrain_weights={straight}", "epoch=1")
    pruned, log = trained(cli, base, tmp_path / "pruned", *pruning, *chain)
    plan = Plan.read(f"{pruned}.plan.json")
    assert plan.settings["share_of"] == "energy" and len(plan.groups) == 18
    for weights in (pruned, straight):
        done(cli("eval", "-c", base, *pruning, "-o", f"weights={weights}"))


@pytest.mark.parametrize("after", ["Distill", "QAT"])
def test_in_a_chain(cli: Cli, base: Path, tmp_path: Path, unpruned: Path, after: str) -> None:
    """The penalty acts beside a teacher, and on the batch norms of a quantized model."""
    teacher = {"config": str(base), "weights": str(unpruned)}
    other = {"teacher": teacher} if after == "Distill" else {"calibration_images": 2}
    content = {"slim": ["Slim", after], "Slim": {"sparsity": 4.0}, after: other}
    (tmp_path / "s.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    given = ("--slim_config", tmp_path / "s.yml", "-o", f"pretrain_weights={unpruned}", "epoch=1")
    stem, _ = trained(cli, base, tmp_path / "all", *given)
    content["Slim"]["sparsity"] = 0.0
    (tmp_path / "s.yml").write_text(yaml.safe_dump(content), encoding="utf-8")
    plain, _ = trained(cli, base, tmp_path / "none", *given)
    name = "neck.yolo_block.0.tip.batch_norm.weight"
    assert np.abs(tensors(stem)[name]).mean() < np.abs(tensors(plain)[name]).mean()

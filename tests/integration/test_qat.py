"""Training in int8 through the commands: resumed, averaged, cut and distilled; then evaluated."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import yaml

from tests.commands import Outcome, done

Cli = Callable[..., Outcome]

LEARNED = {"activation_preprocess_type": "LSQ", "weight_preprocess_type": "LSQ"}


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def tensors(stem: Path, suffix: str = ".pdparams") -> dict[str, np.ndarray]:
    return paddle.load(f"{stem}{suffix}", return_numpy=True)


def record(stem: Path) -> dict[str, Any]:
    return json.loads(Path(f"{stem}.quant.json").read_text())


def qat(path: Path, *before: str, config: dict[str, Any] | None = None, **more: Any) -> Path:
    """A slim file; ranges start from one image."""
    section = {"quant_config": config or {}, "calibration_images": 1, **more.pop("QAT", {})}
    return write(path, {"slim": [*before, "QAT"], "QAT": section, **more})


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory, tiny: Path, unpruned: Path) -> Path:
    """The tiny detector on the same batches in every epoch, at a rate that does not change."""
    content = yaml.safe_load(tiny.read_text())
    reader = content["TrainReader"]
    reader.update(sample_transforms=[{"Decode": {}}], shuffle=False)
    reader["batch_transforms"][0]["BatchRandomResize"].update(random_interp=False)
    decay = {"name": "PiecewiseDecay", "gamma": 0.1, "milestones": [99]}
    warmup = {"name": "LinearWarmup", "start_factor": 1.0, "steps": 1}
    rate = {"base_lr": 0.001, "schedulers": [decay, warmup]}
    changes = {"LearningRate": rate, "pretrain_weights": f"{unpruned}.pdparams"}
    return write(tmp_path_factory.mktemp("steady") / "tiny.yml", {**content, **changes})


@pytest.mark.parametrize("config", [{}, LEARNED], ids=["observed", "learned"])
def test_resumed_run_equals_an_undisturbed_one(
    cli: Cli, steady: Path, tmp_path: Path, config: dict[str, Any]
) -> None:
    """Bit for bit, ranges and optimizer included, and with what froze in between; no slim file."""
    times = {"freeze_epoch": 2, "freeze_bn_epoch": 1}
    slim = qat(tmp_path / "s.yml", config=config, QAT=times)
    saved = ("-o", f"save_dir={tmp_path / 'a'}", "epoch=3", "snapshot_epoch=1")
    out = done(cli("train", "-c", steady, "--slim_config", slim, *saved)).out
    assert "47 layers simulate int8 (calibration images: 1)" in out
    assert "epoch 1: batch norms keep" in out and "epoch 2: ranges are frozen" in out
    again = ("-o", f"save_dir={tmp_path / 'b'}", "epoch=3")
    out = done(cli("train", "-c", steady, "-r", tmp_path / "a" / "tiny" / "0", *again)).out
    assert "47 layers quantized" in out and "at epoch 1" in out and "simulate" not in out
    left, right = (tmp_path / name / "tiny" / "model_final" for name in "ab")
    for suffix in (".pdparams", ".pdopt"):
        first, second = tensors(left, suffix), tensors(right, suffix)
        assert first.keys() == second.keys()
        arrays = [key for key, value in first.items() if isinstance(value, np.ndarray)]
        assert len(arrays) > 100
        assert all(np.array_equal(first[key], second[key]) for key in arrays)
    assert record(left) == record(right)
    early = tensors(tmp_path / "a" / "tiny" / "0")
    assert any(
        not np.array_equal(early[key], value)
        for key, value in tensors(left).items()
        if ".activation." in key
    )


def test_moving_average_of_the_weights(cli: Cli, steady: Path, tmp_path: Path) -> None:
    """Its ranges are averaged like its weights, and it is what is evaluated."""
    slim = qat(tmp_path / "s.yml")
    saved = ("-o", "use_ema=true", f"save_dir={tmp_path}", "epoch=2", "snapshot_epoch=1")
    done(cli("train", "-c", steady, "--slim_config", slim, "--eval", *saved))
    stem = tmp_path / "tiny" / "0"
    average, trained = tensors(stem), tensors(stem, ".pdema")
    ranges = [key for key in average if key.endswith("activation.limit")]
    assert len(ranges) == 45 and all(average[key] > 0 for key in ranges)
    assert any(average[key] != trained[key] for key in ranges)
    out = done(cli("train", "-c", steady, "-r", stem, "--eval", *saved)).out
    assert "at epoch 1" in out and "AP 0." in out
    out = done(cli("eval", "-c", steady, "--slim_config", slim, "-o", f"weights={stem}")).out
    assert "are already quantized as" in out


@pytest.mark.parametrize("before", [("Pruner",), ("Distill",), ("Pruner", "Distill")])
def test_chains(cli: Cli, steady: Path, unpruned: Path, tmp_path: Path, before: tuple) -> None:
    """Pruned, distilled from the float detector, quantized; then evaluated without the file."""
    sections: dict[str, Any] = {
        "Pruner": {"criterion": "l1_norm", "pruned_ratios": "r578"},
        "Distill": {"teacher": {"config": str(steady), "weights": str(unpruned)}, "loss": "l2"},
    }
    config = LEARNED if "Distill" in before else {}
    chosen = {name: sections[name] for name in before}
    slim = qat(tmp_path / "s.yml", *before, config=config, **chosen)
    out = done(cli("train", "-c", steady, "--slim_config", slim, "-o", f"save_dir={tmp_path}")).out
    marks = {"Pruner": "pruned 18 groups", "Distill": f"loaded 241 tensors from {unpruned}"}
    order = [*(marks[name] for name in before), "47 layers simulate int8"]
    assert sorted(order, key=out.index) == order
    stem = tmp_path / "tiny" / "model_final"
    assert Path(f"{stem}.plan.json").is_file() == ("Pruner" in before)
    assert len(record(stem)["layers"]) == 47
    if "Distill" in before:
        assert all(float(value) > 0.0 for value in re.findall(r"distill_l2: (\S+)", out))
    result = tmp_path / "eval.json"
    done(cli("eval", "-c", steady, "-o", f"weights={stem}", "--json", result))
    assert json.loads(result.read_text())["num_images"] == 6


def test_compiled_training_is_refused(cli: Cli, steady: Path, tmp_path: Path) -> None:
    slim = qat(tmp_path / "s.yml")
    settings = ("-o", f"save_dir={tmp_path / 'a'}", "to_static=true")
    run = cli("train", "-c", steady, "--slim_config", slim, *settings)
    assert run.code == 2 and "cannot be trained with to_static" in run.err
    assert not (tmp_path / "a").exists()

"""A user's own methods: the very file and commands of `docs/extending.md`, nothing of them here."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import yaml

from tests.commands import Outcome, command, done, files_below
from tests.support import ROOT, restored_config

DOCUMENT = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
TIP = "neck.yolo_block.0.tip"
STEPS = {".plan.json", ".activation.json"}


def blocks(language: str) -> list[str]:
    """The code of the document in one language, block by block."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: Path, unpruned: Path) -> Path:
    """What the document's reader has: a detector, a teacher, and the two files of the document."""
    path = tmp_path_factory.mktemp("extension")
    content = {"_BASE_": [str(tiny)], "save_dir": "output"}
    (path / "detector.yml").write_text(yaml.safe_dump(content))
    shutil.copy(f"{unpruned}.pdparams", path / "teacher.pdparams")
    (path / "my_methods.py").write_text("\n".join(blocks("python")))
    (path / "own.yml").write_text("".join(blocks("yaml")))
    return path


def run(folder: Path, name: str, *more: Any) -> Outcome:
    """A command of the document, in a process of its own."""
    (line,) = [line for line in blocks("console")[0].splitlines() if f" {name} " in line]
    module, script, *arguments = shlex.split(line)[2:]
    assert line.startswith("python -m slim_det ") and module == "slim_det"
    return command(*arguments, *more, cwd=folder, script=folder / script)


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """Stem of the checkpoint that the document's training has left."""
    outcome = done(run(folder, "train"))
    (folder / "train.log").write_text(outcome.out)
    return folder / "output" / "detector" / "model_final"


@pytest.fixture(scope="module")
def quantized(folder: Path, trained: Path) -> dict[str, dict[str, Any]]:
    """Observer -> what `quantize` says; that of the document comes last, and stays."""
    found = {}
    for observer in ("abs_max", "headroom"):
        path = folder / f"{observer}.json"
        more = ("--observer", observer, "--images", 2, "--no_eval", "--json", path)
        done(run(folder, "quantize", *more))
        found[observer] = read(path)
    return found


def test_everything_is_saved_beside_the_weights(trained: Path) -> None:
    """The adaptor of the loss as well."""
    suffixes = STEPS | {".pdparams", ".pdopt", ".companions.pdparams"}
    assert {path.name for path in trained.parent.glob("model_final*")} == {
        f"model_final{suffix}" for suffix in suffixes
    }


def test_criterion_chose_the_channels(folder: Path, trained: Path) -> None:
    """The half with the largest weight of all is kept."""
    weight = paddle.load(str(folder / "teacher.pdparams"), return_numpy=True)[f"{TIP}.conv.weight"]
    scores = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    plan = read(trained.with_name("model_final.plan.json"))
    assert plan["settings"]["criterion"] == "largest"
    best = np.sort(np.argsort(scores, kind="stable")[len(scores) // 2 :])
    assert plan["groups"][TIP]["kept"] == best.tolist()


def test_loss_acted(folder: Path) -> None:
    (value,) = re.findall(r"^distill_cosine +(\S+)", (folder / "train.log").read_text(), re.M)
    assert 0.0 < float(value) < 2.0


def test_step_names_every_leaky_layer(trained: Path, tiny: Path) -> None:
    from slim_det.training import session
    from slim_det.training.config import load_config

    with restored_config():
        model = session.build_model(load_config(tiny))
    leaky = [n for n, layer in model.named_sublayers() if getattr(layer, "act", "") == "leaky"]
    step = read(trained.with_name("model_final.activation.json"))
    assert step["fields"] == {"activation": "swish", "layers": leaky} and len(leaky) > 18
    assert step["place"] == 1


def test_training_is_resumed(folder: Path, trained: Path) -> None:
    """What was done is taken over, and not done twice."""
    copy = folder / "resumed"
    shutil.copytree(trained.parent, copy / "detector")
    more = ("-r", copy / "detector" / "model_final", "-o", "epoch=2", f"save_dir={copy}")
    outcome = done(run(folder, "train", *more))
    assert "Epoch: [1]" in outcome.out and "its plan is used" in outcome.out
    for suffix in STEPS:
        again = copy / "detector" / f"model_final{suffix}"
        assert again.read_text() == trained.with_name(again.name).read_text()


def test_another_activation_is_refused(folder: Path, trained: Path) -> None:
    before = files_below(trained.parent)
    asked = ("-o", f"weights={trained}", "SwapActivation.activation=hardswish")
    outcome = run(folder, "eval", "--slim_config", "own.yml", *asked)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "have swish already" in outcome.err and files_below(trained.parent) == before


def test_evaluation_in_a_fresh_process(folder: Path, trained: Path) -> None:
    path = folder / "eval.json"
    outcome = done(run(folder, "eval", "--json", path))
    assert read(path)["num_images"] == 6
    restored = re.findall(r"replayed \S*model_final(\S+):", outcome.out)
    assert restored == [".plan.json", ".activation.json"]


def test_export_runs_the_new_activation(folder: Path, trained: Path) -> None:
    """The engines agree, or nothing would be exported; no leaky ReLU is left in the program."""
    done(run(folder, "export"))
    content = (folder / "output_inference" / "detector" / "model.pdmodel").read_bytes()
    program = paddle.base.core.ProgramDesc(content)
    block = program.block(0)
    kinds = {block.op(index).type() for index in range(block.op_size())}
    assert "swish" in kinds and "leaky_relu" not in kinds


def test_observer_made_the_ranges(quantized: dict[str, dict[str, Any]]) -> None:
    """A tenth more than the largest value, in every layer."""
    plain, wide = (
        {layer["name"]: layer["input_range"] for layer in quantized[name]["layers"]}
        for name in ("abs_max", "headroom")
    )
    ranges = {name: value for name, value in plain.items() if value is not None}
    assert len(ranges) > 40
    assert {name: wide[name] / value for name, value in ranges.items()} == pytest.approx(
        dict.fromkeys(ranges, 1.1), rel=1e-5
    )


def test_quantized_weights_are_loaded_with_every_step(
    folder: Path, quantized: dict[str, dict[str, Any]]
) -> None:
    """Pruned, then activated anew, then quantized."""
    weights = quantized["headroom"]["checkpoint"]
    outcome = done(run(folder, "eval", "-o", f"weights={weights}"))
    restored = re.findall(r"replayed \S*quantized(\S+):", outcome.out)
    assert restored == [".plan.json", ".activation.json", ".quant.json"]


def test_weights_are_refused_where_the_strategy_is_unknown(folder: Path, trained: Path) -> None:
    """Not loaded with the activation that the model is built with."""
    outcome = command("eval", "-c", "detector.yml", "-o", f"weights={trained}", cwd=folder)
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "model_final.activation.json' was left by a strategy that is not" in outcome.err

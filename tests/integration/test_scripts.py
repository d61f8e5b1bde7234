"""`python -m slim_det SCRIPT`: scripts that know ppdet only."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from tests.commands import CONFIGS, ROOT, command, files_below

SCRIPT = Path(__file__).with_name("train_script.py")


def test_script_trains_a_pruned_model(
    tiny: Path, unpruned: Path, r578: Path, tmp_path: Path
) -> None:
    """With a plan beside the weights; `-o` wins over the slim file, as it does over `-c`."""
    content = {**yaml.safe_load(r578.read_text()), "pretrain_weights": "https://no.such/x.pdparams"}
    slim = tmp_path / "slim.yml"
    slim.write_text(yaml.safe_dump(content))
    overrides = ("-o", f"pretrain_weights={unpruned}.pdparams", f"save_dir={tmp_path}")
    run = command("-c", tiny, "--slim_config", slim, *overrides, script=SCRIPT, cwd=tmp_path)
    assert run.code == 0, run.err
    assert f"241 of 241 tensors from {unpruned}.pdparams" in run.out
    plan = json.loads((tmp_path / "tiny" / "model_final.plan.json").read_text())
    assert len(plan["groups"]) == 18


def test_script_goes_on_from_cut_weights(tiny: Path, trained: Path, tmp_path: Path) -> None:
    """Resumed without a slim file, the model is cut as it was; so it is for a start."""
    saved = f"save_dir={tmp_path}"
    resumed = ("-r", trained, "--eval", "-o", saved, "epoch=2")
    run = command("-c", tiny, *resumed, script=SCRIPT, cwd=tmp_path)
    assert run.code == 0, run.err
    assert "at epoch 1" in run.out and "AP 0." in run.out
    names = {path.name for path in (tmp_path / "tiny").iterdir()}
    assert {"model_final.plan.json", "best_model.plan.json"} <= names


@pytest.mark.parametrize("flag", ["-c", "--config", "--conf", "--slim_config", "--slim"])
def test_code_in_yaml_is_not_run(tiny: Path, tmp_path: Path, flag: str) -> None:
    """Nor through a base, nor where the flag is abbreviated: the script never starts."""
    mark = tmp_path / "ran"
    evil = tmp_path / "evil.yml"
    evil.write_text(f"epoch: !!python/object/apply:os.system ['touch {mark}']\n")
    child = tmp_path / "child.yml"
    child.write_text("_BASE_: [evil.yml]\n")
    before = files_below(tmp_path)
    config = [] if flag.startswith(("-c", "--c")) else ["-c", tiny]
    run = command(*config, flag, child, script=SCRIPT, cwd=tmp_path)
    assert run.code == 2 and len(run.err.splitlines()) == 1, run.err
    assert "evil.yml" in run.err and "is not valid YAML" in run.err
    assert files_below(tmp_path) == before


def test_script_that_is_missing(tmp_path: Path) -> None:
    run = command("-c", "x.yml", script=tmp_path / "gone.py", cwd=tmp_path)
    assert run.code == 2
    assert f"script '{tmp_path}/gone.py' does not exist; usage:" in run.err


def test_own_exit_code_and_output_pass_through(tmp_path: Path) -> None:
    """The script finds its own arguments and folder, as if it had been started by itself."""
    script = tmp_path / "own.py"
    script.write_text("import sys, helper\nprint(sys.argv, helper.HERE)\nsys.exit(7)\n")
    (tmp_path / "helper.py").write_text("HERE = 'beside'\n")
    run = command("--flag", "1", script=script, cwd=ROOT)
    assert run.code == 7
    assert run.out == f"['{script}', '--flag', '1'] beside\n"


@pytest.fixture
def checkout() -> Path:
    """A checkout of PaddleDetection."""
    if not os.environ.get("PADDLEDETECTION_DIR"):
        pytest.skip("needs PADDLEDETECTION_DIR, a checkout of PaddleDetection 2.6")
    return Path(os.environ["PADDLEDETECTION_DIR"])


@pytest.fixture
def few_cells(bccd: Path, tmp_path: Path) -> list[str]:
    """Settings for one epoch on four images of blood cells, saved in the test's folder."""
    few = tmp_path / "few.txt"
    few.write_text("".join((bccd / "train.txt").read_text().splitlines(keepends=True)[:4]))
    common = [f"save_dir={tmp_path}", "worker_num=0", "epoch=1", "snapshot_epoch=1", "log_iter=1"]
    common += [f"{part}Dataset.dataset_dir={bccd}" for part in ("Train", "Eval", "Test")]
    common += [f"{part}Dataset.anno_path={few}" for part in ("Train", "Eval")]
    return [*common, "TrainReader.batch_size=2", "EvalReader.batch_size=2"]


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["l1_norm", "fpgm"])
def test_paddledetection_itself(
    checkout: Path, few_cells: list[str], bccd_weights: Path, tmp_path: Path, criterion: str
) -> None:
    """Its unmodified scripts, its own ppdet package and its slim files, weights given by `-o`."""
    config = CONFIGS / "yolov3_mobilenet_v1_bccd.yml"
    slim = checkout / "configs" / "slim" / "prune" / f"yolov3_prune_{criterion}.yml"
    run = command(
        *("-c", config, "--slim_config", slim),
        *("-o", f"pretrain_weights={bccd_weights}", *few_cells),
        script=checkout / "tools" / "train.py",
        cwd=tmp_path,
        PYTHONPYCACHEPREFIX=str(tmp_path / "compiled"),
        PYTHONDONTWRITEBYTECODE="",
    )
    assert run.code == 0, run.err
    assert f"241 of 241 tensors from {bccd_weights}" in run.out
    assert "pruned 18 groups" in run.out
    stem = tmp_path / config.stem / "model_final"
    plan = json.loads(Path(f"{stem}.plan.json").read_text())
    assert plan["settings"]["criterion"] == criterion
    compiled = tmp_path / "compiled" / checkout.resolve().relative_to("/")
    assert (compiled / "ppdet" / "engine").is_dir()  # not that of the installed package
    for name in ("eval", "export_model"):
        output = ("--output_dir", tmp_path / "exported") if name == "export_model" else ()
        run = command(
            *("-c", config, *output, "-o", f"weights={stem}", *few_cells),
            script=checkout / "tools" / f"{name}.py",
            cwd=tmp_path,
        )
        assert run.code == 0, run.err
        assert "18 groups cut" in run.out
    assert (tmp_path / "exported" / config.stem / "slim_det.json").is_file()


@pytest.mark.slow
def test_paddledetection_repairs(
    checkout: Path, few_cells: list[str], bccd_weights: Path, tmp_path: Path
) -> None:
    """Its unmodified scripts with a slim file that repairs: before training, and for evaluation."""
    config, slim = CONFIGS / "yolov3_mobilenet_v1_bccd.yml", CONFIGS / "prune_r578_repair.yml"
    run = command(
        *("-c", config, "--slim_config", slim, "--eval"),
        *("-o", f"pretrain_weights={bccd_weights}", *few_cells),
        script=checkout / "tools" / "train.py",
        cwd=tmp_path,
        timeout_s=900,
    )
    assert run.code == 0, run.err
    place = run.out.index
    assert place("learning from 4 images") < place("layers on 4 images: mean rel") < place("Epoch:")
    stem = tmp_path / config.stem / "model_final"
    plan = json.loads(Path(f"{stem}.plan.json").read_text())
    assert plan["settings"]["criterion"] == "elimination"
    assert plan["repair"]["images"] == 4 and len(plan["repair"]["layers"]) == 22
    for start, said in (
        (stem, "is already cut as"),
        (bccd_weights, "layers on 4 images: mean rel"),
    ):
        run = command(
            *("-c", config, "--slim_config", slim, "-o", f"weights={start}", *few_cells),
            script=checkout / "tools" / "eval.py",
            cwd=tmp_path,
            timeout_s=900,
        )
        assert run.code == 0, run.err
        assert said in run.out and "mAP" in run.out

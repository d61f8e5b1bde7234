"""A distilled training as a user runs it: what it says, what it leaves, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import yaml

from slim_det.training import session
from slim_det.training.config import load_config
from tests.commands import Outcome, command, done, files_below
from tests.support import restored_config
from tests.trained import Detector, make_detector

Cli = Callable[..., Outcome]
Refused = Callable[..., str]
Settings = dict[str, Any]

TIP = "neck.yolo_block.1.tip"
ADAPTED = {"student": TIP, "teacher": TIP, "loss": "cwd"}

THIN = {
    "YOLOv3": {"backbone": "PlainBackbone"},
    "PlainBackbone": {"widths": [8, 8, 16, 16, 24]},
    "ScaledYOLOv3FPN": {"width": 0.0625},
}


def write(path: Path, content: Settings) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def tensors(stem: Path, suffix: str = ".pdparams") -> dict[str, np.ndarray]:
    """Every tensor of a file of a checkpoint."""
    state = paddle.load(f"{stem}{suffix}", return_numpy=True)
    return {name: value for name, value in state.items() if isinstance(value, np.ndarray)}


def shapes_of(stem: Path, suffix: str = ".pdparams") -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in tensors(stem, suffix).items()}


def same(left: Path, right: Path, suffix: str = ".pdparams") -> bool:
    """Whether a file of two checkpoints holds the same numbers, to the last bit."""
    ours, theirs = tensors(left, suffix), tensors(right, suffix)
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[n], theirs[n]) for n in ours)


def untrained(config: Path, path: Path) -> Path:
    """Weights of a configuration, drawn from a seed."""
    with restored_config():
        paddle.seed(5)
        paddle.save(session.build_model(load_config(config)).state_dict(), str(path))
    return path


@pytest.fixture(scope="module")
def teacher(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, shapes: Path, ppdet_registered: None
) -> Detector:
    """A detector that finds what is to be found; no test changes its files."""
    return make_detector(tmp_path_factory.mktemp("teacher") / "detector", tiny, shapes)


@pytest.fixture(scope="module")
def base(teacher: Detector, tiny: Path) -> Path:
    """The tiny detector on the teacher's objects; both epochs see the images alike.

    ppdet draws the order and the augmentation anew in a run that is resumed. Without, it has to
    end at the same numbers as a run that was not interrupted.
    """
    reader = yaml.safe_load(tiny.read_text())["TrainReader"]
    reader.update(sample_transforms=[{"Decode": {}}], shuffle=False)
    reader["batch_transforms"][0]["BatchRandomResize"]["random_interp"] = False
    data = {"dataset_dir": str(teacher.folder / "set"), "anno_path": "objects.json"}
    content = {"_BASE_": [str(tiny)], "EvalDataset": data, "TrainReader": reader, "epoch": 2}
    return write(teacher.folder / "base.yml", content)


@pytest.fixture(scope="module")
def student(base: Path) -> Path:
    """A detector of another backbone, narrower than the teacher."""
    return write(base.with_name("student.yml"), {"_BASE_": [str(base)], **THIN})


@pytest.fixture(scope="module")
def distill(teacher: Detector) -> Settings:
    """`l2` of the raw outputs, and a pair whose channels differ; both grow over an epoch."""
    source = {"config": str(teacher.config), "weights": str(teacher.weights)}
    return {"teacher": source, "weight": 1.0, "ramp_epochs": 1, "pairs": [ADAPTED]}


@pytest.fixture(scope="module")
def slim(base: Path, distill: Settings) -> Path:
    return write(base.with_name("slim.yml"), {"slim": "Distill", "Distill": distill})


@pytest.fixture(scope="module")
def distilled(
    tmp_path_factory: pytest.TempPathFactory, student: Path, slim: Path, teacher: Detector
) -> Path:
    """Stem of what two epochs have left; ``train.log`` is beside its folder."""
    folder = tmp_path_factory.mktemp("distilled")
    before = files_below(teacher.folder)
    arguments = ("--slim_config", slim, "--eval", "--seed", 0, "-o", f"save_dir={folder}")
    run = done(command("train", "-c", student, *arguments, cwd=folder, OMP_NUM_THREADS="1"))
    (folder / "train.log").write_text(run.out + run.err)
    assert files_below(teacher.folder) == before
    return folder / "student" / "model_final"


@pytest.fixture
def log(distilled: Path) -> str:
    return (distilled.parent.parent / "train.log").read_text()


def test_training_says_who_teaches_whom(log: str, teacher: Detector) -> None:
    """Each model is measured once, before the first epoch; the teacher is the better one."""
    assert f"loaded 241 tensors from {teacher.weights}" in log
    teachers = re.findall(r"slim_det: teacher: coco_ap (\S+) on 6 images", log)
    students = re.findall(r"slim_det: student before training: coco_ap (\S+) on 6 images", log)
    assert len(teachers) == len(students) == 1
    assert float(teachers[0]) > float(students[0])
    assert "before fine-tuning" not in log and "WORSE" not in log
    assert log.index("teacher: coco_ap") < log.index("Epoch: [0] [0/2]")


def test_training_says_how_strongly_each_term_pulls(log: str) -> None:
    """Value and norm of the gradient once, each term at its full weight; the schedule."""
    (table,) = re.findall(r"losses at full weight.*\n.*\n((?:\S+ +\S+ +\S+ +\S+ x\n)+)", log)
    rows = [line.split() for line in table.splitlines()]
    assert [row[0] for row in rows] == ["loss", "distill_l2", "distill_cwd"]
    assert all(float(row[1]) > 0.0 and float(row[2]) > 0.0 for row in rows)
    for line in (
        "epoch 0: distill_l2 acts with weight 0.5 and grows to 1",
        "epoch 0: distill_cwd acts with weight 2.5 and grows to 5",
        "epoch 1: distill_l2 grows to weight 1 of 1",
        "epoch 1: distill_cwd grows to weight 5 of 5",
    ):
        assert log.count(line) == 1
    steps = re.findall(r"Epoch: \[\d\] \[\d/2\].* distill_l2: (\S+) distill_cwd: (\S+)", log)
    assert len(steps) == 4
    # As it enters the total: half of what the table shows.
    assert float(steps[0][0]) == pytest.approx(float(rows[1][1]) / 2, rel=1e-3)


def test_checkpoints_are_those_of_the_student(
    cli: Cli, distilled: Path, student: Path, tmp_path: Path
) -> None:
    """The same tensors and slots as without a teacher; auxiliary modules beside each."""
    done(cli("train", "-c", student, "-o", f"save_dir={tmp_path}", "epoch=1"))
    stem = tmp_path / "student" / "model_final"
    for suffix in (".pdparams", ".pdopt"):
        assert shapes_of(distilled, suffix) == shapes_of(stem, suffix)
    saved = {path.name for path in distilled.parent.iterdir()}
    suffixes = (".pdparams", ".pdopt", ".companions.pdparams")
    stems = ("0", "best_model", "model_final")
    assert saved == {f"{n}{s}" for n in stems for s in suffixes} | {"best_model.json", "bbox.json"}
    adaptor = shapes_of(distilled, ".companions.pdparams")
    assert adaptor["parameter/distill_cwd.0.weight"][2:] == (1, 1)


@pytest.mark.parametrize("given", ["alone", "slim"])
def test_eval_and_export_never_build_the_teacher(
    cli: Cli, distilled: Path, student: Path, tmp_path: Path, given: str
) -> None:
    """With `-c` alone, or with a slim file whose teacher is not there any more."""
    source = {"config": str(tmp_path / "gone.yml"), "weights": str(tmp_path / "gone.pdparams")}
    gone = write(tmp_path / "slim.yml", {"slim": "Distill", "Distill": {"teacher": source}})
    common = ("-c", student, *(("--slim_config", gone) if given == "slim" else ()))
    weights = ("-o", f"weights={distilled}")
    run = done(cli("eval", *common, *weights))
    assert "coco_ap" in run.out and "teacher" not in run.out
    run = done(cli("export", *common, "--output_dir", tmp_path / "out", *weights))
    assert "teacher" not in run.out
    assert (tmp_path / "out" / "student" / "model.pdmodel").is_file()


@pytest.mark.parametrize("name", ["0", "best_model"])
def test_resumed_training_equals_an_undisturbed_one(
    cli: Cli, distilled: Path, student: Path, slim: Path, tmp_path: Path, name: str
) -> None:
    """Student, optimizer and auxiliary modules; the teacher is not measured again."""
    assert same(distilled.with_name("0"), distilled.with_name(name)), "the best is epoch 0's"
    resumed = ("-r", distilled.with_name(name), "--slim_config", slim)
    run = done(cli("train", "-c", student, *resumed, "-o", f"save_dir={tmp_path}"))
    assert "at epoch 1" in run.out and "Epoch: [0]" not in run.out
    assert "teacher: coco_ap" not in run.out
    stem = tmp_path / "student" / "model_final"
    for suffix in (".pdparams", ".pdopt", ".companions.pdparams"):
        assert same(stem, distilled, suffix), suffix
    assert not same(stem, distilled.with_name("0"))


def test_resuming_without_companions_is_refused(
    distilled: Path, student: Path, slim: Path, refused: Refused, tmp_path: Path
) -> None:
    for suffix in (".pdparams", ".pdopt"):
        source = Path(f"{distilled.with_name('0')}{suffix}")
        (tmp_path / source.name).write_bytes(source.read_bytes())
    line = refused("-c", student, "-r", tmp_path / "0", "--slim_config", slim)
    assert "0.companions.pdparams' do not exist" in line


def test_measuring_changes_nothing(
    cli: Cli, distilled: Path, student: Path, slim: Path, tmp_path: Path
) -> None:
    """`--skip_teacher_eval` says so, and trains the very same student."""
    arguments = ("--slim_config", slim, "--seed", 0, "--skip_teacher_eval")
    run = done(cli("train", "-c", student, *arguments, "-o", f"save_dir={tmp_path}", "epoch=1"))
    assert "the teacher is not measured, as asked" in run.out
    assert "coco_ap" not in run.out
    assert same(tmp_path / "student" / "model_final", distilled.with_name("0"))


@pytest.mark.parametrize("missing", ["key", "folder", "metric"])
def test_no_evaluation_data(
    cli: Cli, student: Path, slim: Path, tmp_path: Path, missing: str
) -> None:
    """Training goes on; a line says that the teacher could not be measured, and why."""
    gone = str(tmp_path / "gone")
    content, said = {
        "key": ({"EvalDataset": None}, "EvalDataset: no anno_path is given"),
        "folder": ({"EvalDataset": {"dataset_dir": gone}}, gone),
        "metric": ({"metric": "WiderFace"}, "WiderFace"),
    }[missing]
    config = write(tmp_path / "student.yml", {"_BASE_": [str(student)], **content})
    saved = ("-o", f"save_dir={tmp_path / 'saved'}", "epoch=1")
    run = done(cli("train", "-c", config, "--slim_config", slim, *saved))
    (line,) = re.findall(r"slim_det: the teacher cannot be measured: (.+)", run.out)
    assert said in line
    assert (tmp_path / "saved" / "student" / "model_final.pdparams").is_file()


def test_a_teacher_that_is_worse(
    cli: Cli, base: Path, teacher: Detector, unpruned: Path, tmp_path: Path
) -> None:
    """The student starts from good weights, the teacher has any."""
    source = {"config": str(teacher.config), "weights": str(unpruned)}
    slim = write(tmp_path / "slim.yml", {"slim": "Distill", "Distill": {"teacher": source}})
    settings = (f"pretrain_weights={teacher.weights}", f"save_dir={tmp_path}", "epoch=1")
    run = done(cli("train", "-c", base, "--slim_config", slim, "-o", *settings))
    (line,) = re.findall("slim_det: THE TEACHER IS WORSE THAN THE STUDENT: (.+)", run.out)
    assert re.match(r"coco_ap 0\.\d+ against 0\.\d+ before any training; check Distill", line)


def test_cut_then_distilled_with_an_average(
    cli: Cli, base: Path, r578: Path, distill: Settings, unpruned: Path, tmp_path: Path
) -> None:
    """A plan beside the weights; resumed, it is the student that goes on, not the teacher."""
    content = {**yaml.safe_load(r578.read_text()), "slim": ["Pruner", "Distill"]}
    slim = write(tmp_path / "slim.yml", {**content, "Distill": distill})
    common = ("-c", base, "--slim_config", slim, "--eval")
    # Of this kind ppdet saves what it goes on with; of the others, a corrected average.
    start = ("use_ema=true", "ema_decay_type=exponential", f"pretrain_weights={unpruned}")
    run = done(cli("train", *common, "-o", *start, f"save_dir={tmp_path / 'a'}"))
    assert run.out.index("pruned 18 groups") < run.out.index("teacher: coco_ap")
    left = tmp_path / "a" / "base"
    name = "neck.yolo_block.2.tip.conv.weight"
    average, trained = tensors(left / "0"), tensors(left / "0", ".pdema")
    assert average[name].shape == trained[name].shape == (13, 6, 3, 3)
    assert not np.array_equal(average[name], trained[name])
    assert shapes_of(left / "0").keys() == shapes_of(unpruned).keys()
    run = done(cli("train", *common, "-r", left / "0", "-o", *start, f"save_dir={tmp_path / 'b'}"))
    assert f"resumed {left / '0'}.pdparams at epoch 1" in run.out and "pretrained" not in run.out
    right = tmp_path / "b" / "base" / "model_final"
    for suffix in (".pdparams", ".pdema", ".pdopt", ".companions.pdparams"):
        assert same(left / "model_final", right, suffix), suffix
    assert len({Path(f"{stem}.plan.json").read_text() for stem in (left / "0", right)}) == 1
    done(cli("eval", "-c", base, "-o", f"weights={right}"))


@pytest.fixture
def refused(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """A training that ends with exit code 2 and one line, and changes no file; gives the line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> str:
        before = files_below(tmp_path)
        outcome = cli("train", *arguments)
        assert files_below(tmp_path) == before, outcome.err
        assert outcome.code == 2, outcome.err + outcome.out
        (line,) = outcome.err.splitlines()
        assert line.startswith("slim-det train: error: ") and "Epoch" not in outcome.out
        return line

    return run


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"teacher": None}, "Distill.teacher is missing; expected teacher: {config: FILE.yml"),
        ({"teacher": {"config": "x.yml"}}, "Distill.teacher.weights is missing"),
        ({"teacher": {"weights": "x"}}, "Distill.teacher.config is missing"),
        ({"teachr": {}}, "Distill: unknown key 'teachr'; did you mean 'teacher'?"),
        ({"loss": "l_2"}, "Distill: loss: unknown loss 'l_2'; did you mean 'l2'?"),
        ({"weight": 0}, "Distill: weight: 0 is not valid; expected a number above 0"),
        ({"start_epoch": 3, "end_epoch": 2}, "end_epoch: expected more than start_epoch 3, got 2"),
        (
            {"pairs": [{**ADAPTED, "weight": -1}]},
            "pairs[0]: weight: -1 is not valid; expected a number",
        ),
        ({"pairs": [{**ADAPTED, "student": "neck.nose"}]}, "student: unknown layer 'neck.nose'"),
        ({"pairs": [{**ADAPTED, "teacher": "neck.nose"}]}, "teacher: unknown layer 'neck.nose'"),
        ({"pairs": [{**ADAPTED, "teacher": "neck.yolo_block.0.tip"}]}, "neck.yolo_block.0.tip"),
        ({"pairs": [{**ADAPTED, "loss": "fps"}]}, "pairs[0]: loss: unknown loss 'fps'"),
    ],
)
def test_settings_that_are_wrong(
    refused: Refused, student: Path, distill: Settings, tmp_path: Path, changes: Settings, said: str
) -> None:
    slim = write(tmp_path / "slim.yml", {"slim": "Distill", "Distill": {**distill, **changes}})
    assert said in refused("-c", student, "--slim_config", slim, "--seed", 0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_classes": 5}, "num_classes: 4 in the student, 5 in the teacher"),
        ({"YOLOv3Head": {"anchors": [[9, 9]] * 9}}, "anchors: [[["),
    ],
)
def test_teachers_that_do_not_fit(
    refused: Refused,
    student: Path,
    teacher: Detector,
    distill: Settings,
    tmp_path: Path,
    changes: Settings,
    said: str,
) -> None:
    """What differs is named, with both values."""
    config = write(tmp_path / "teacher.yml", {"_BASE_": [str(teacher.config)], **changes})
    weights = untrained(config, tmp_path / "teacher.pdparams")
    source = {"config": str(config), "weights": str(weights)}
    content = {"slim": "Distill", "Distill": {**distill, "teacher": source}}
    slim = write(tmp_path / "slim.yml", content)
    assert said in refused("-c", student, "--slim_config", slim)


def test_weights_of_the_teacher_are_not_there(
    refused: Refused, student: Path, slim: Path, tmp_path: Path
) -> None:
    gone = tmp_path / "gone.pdparams"
    line = refused("-c", student, "--slim_config", slim, "-o", f"Distill.teacher.weights={gone}")
    assert f"Distill.teacher: weights '{gone}' do not exist" in line


def stopped(run: Outcome) -> str:
    """The line of a training that met a loss that is not finite."""
    assert run.code == 2, run.err + run.out
    (line,) = run.err.splitlines()
    return line


def test_a_term_that_is_not_finite(
    cli: Cli, student: Path, distill: Settings, tmp_path: Path
) -> None:
    """It stops with epoch, step and term; the last checkpoint stays, and is good."""
    huge = {**ADAPTED, "loss": "feature_l2", "weight": 3e38, "start_epoch": 1}
    content = {**distill, "pairs": [huge], "ramp_epochs": 0}
    slim = write(tmp_path / "slim.yml", {"slim": "Distill", "Distill": content})
    saved = ("-o", f"save_dir={tmp_path}")
    line = stopped(cli("train", "-c", student, "--slim_config", slim, "--eval", *saved))
    assert "epoch 1, step 0: distill_feature_l2 is infinite; the last checkpoint stays" in line
    names = {path.name for path in (tmp_path / "student").glob("*.pdparams")}
    assert names == {f"{n}{s}.pdparams" for n in ("0", "best_model") for s in ("", ".companions")}
    done(cli("eval", "-c", student, "-o", f"weights={tmp_path / 'student' / '0'}"))


def test_a_learning_rate_that_is_too_large(
    cli: Cli, student: Path, slim: Path, tmp_path: Path
) -> None:
    """The student's outputs are what is named, before any loss; nothing is left."""
    rate = ("LearningRate.base_lr=1.0e+30",)
    run = cli("train", "-c", student, "--slim_config", slim, "-o", *rate, f"save_dir={tmp_path}")
    said = "epoch 0, step 1: the student's 'yolo_head.yolo_output.0' is nan; the last checkpoint"
    assert said in stopped(run)
    assert not list(tmp_path.rglob("*.pdparams"))


def test_weights_that_are_not_finite_are_not_saved(
    cli: Cli, student: Path, slim: Path, tmp_path: Path
) -> None:
    """The last step of an epoch spoils them, and no loss is computed before they are saved."""
    rate = ("LearningRate.base_lr=1.0e+40", "TrainReader.batch_size=16")
    run = cli("train", "-c", student, "--slim_config", slim, "-o", *rate, f"save_dir={tmp_path}")
    assert re.search(r"epoch 0: .+ not finite", stopped(run))
    assert not list(tmp_path.rglob("*.pdparams"))

"""Reading configurations and slim files into ppdet's global one."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from slim_det.core.errors import ConfigError
from slim_det.training import config
from slim_det.training.config import SlimConfig, apply_overrides, load_config, load_slim_config

pytestmark = pytest.mark.usefixtures("fresh_config")


def write(path: Path, content: Any) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def test_file_bases_and_overrides_in_this_order(tiny: Path, tmp_path: Path) -> None:
    """The name of the configuration is that of the file; what nobody sets has a default."""
    path = write(tmp_path / "own.yml", {"_BASE_": [str(tiny)], "epoch": 7, "log_iter": 9})
    cfg = load_config(path, ["log_iter=3", "MobileNet.scale=0.5", "TrainReader.batch_size=2"])
    assert (cfg.filename, cfg.epoch, cfg.log_iter) == ("own", 7, 3)
    assert cfg["MobileNet"]["scale"] == 0.5 and cfg["MobileNet"]["feature_maps"] == [4, 6, 13]
    assert cfg["TrainReader"]["batch_size"] == 2 and cfg["TrainReader"]["shuffle"] is True
    assert cfg.use_gpu is False


@pytest.mark.parametrize("where", ["file", "override"])
def test_component_of_nothing_keeps_its_defaults(
    tiny: Path, tmp_path: Path, fresh_config: Any, where: str
) -> None:
    """`EvalDataset: null` takes away what a base says of it, and not the component."""
    path = write(tmp_path / "own.yml", {"_BASE_": [str(tiny)], "EvalDataset": None})
    source = (path, []) if where == "file" else (tiny, ["EvalDataset=null"])
    before = type(fresh_config["EvalDataset"])
    cfg = load_config(*source)
    assert isinstance(cfg["EvalDataset"], before) and not dict(cfg["EvalDataset"])


def test_the_fixture_gives_the_configuration_back(tiny: Path, fresh_config: Any) -> None:
    """Nothing of the test before is left, down to the settings of components."""
    assert "filename" not in fresh_config and "epoch" not in fresh_config
    assert fresh_config["MobileNet"]["scale"] == 1
    load_config(tiny)
    assert fresh_config["MobileNet"]["scale"] == 0.25


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("epoch=3", 3),
        ("save_dir=a=b", "a=b"),
        ("pretrain_weights=", None),
        ("LearningRate.base_lr=1.5e-3", 0.0015),
        ("YOLOv3Head.anchor_masks=[[1], [2]]", [[1], [2]]),
        ("TestReader.inputs_def.image_shape=[3, 64, 32]", [3, 64, 32]),
    ],
)
def test_override_values_are_yaml(fresh_config: Any, text: str, value: Any) -> None:
    apply_overrides([text])
    found: Any = fresh_config
    for key in text.partition("=")[0].split("."):
        found = found[key]
    assert found == value


def test_override_keeps_what_stands_beside_it(tiny: Path) -> None:
    cfg = load_config(tiny, ["OptimizerBuilder.optimizer.momentum=0.5"])
    assert cfg["OptimizerBuilder"]["optimizer"] == {"type": "Momentum", "momentum": 0.5}
    assert cfg["OptimizerBuilder"]["regularizer"]["type"] == "L2"


def test_configuration_without_architecture(tmp_path: Path) -> None:
    path = write(tmp_path / "own.yml", {"epoch": 1})
    with pytest.raises(ConfigError, match="no 'architecture' is given"):
        load_config(path)


def test_component_that_a_component_names(tmp_path: Path) -> None:
    """By its own mapping, by its name, and by the architecture."""
    for content, said in (
        ({"YOLOv3": {"neck": "YOLOv3FPM"}}, "YOLOv3.neck: unknown component 'YOLOv3FPM'"),
        (
            {"BBoxPostProcess": {"nms": {"name": "MultiClassNMS", "keep_topk": 1}}},
            "BBoxPostProcess.nms: unknown key 'keep_topk'; did you mean 'keep_top_k'?",
        ),
        ({"TrainDataset": {"name": "COCODataset"}}, "did you mean 'COCODataSet'?"),
    ):
        path = write(tmp_path / "own.yml", {"architecture": "YOLOv3", **content})
        with pytest.raises(ConfigError) as caught:
            load_config(path)
        assert said in str(caught.value)


def test_own_keys_for_anchors_are_let_through(tmp_path: Path, fresh_config: Any) -> None:
    """ppdet's files keep values under names of their own; only near misses are refused."""
    load_config(write(tmp_path / "own.yml", {"architecture": "YOLOv3", "my_eval_height": 5}))
    assert fresh_config["my_eval_height"] == 5


def test_slim_file_names_strategies_in_order(tmp_path: Path) -> None:
    content = {"slim": ["Pruner", "QAT"], "Pruner": {"pruned_ratios": 0.5}, "epoch": 3}
    slim = load_slim_config(write(tmp_path / "s.yml", content))
    assert slim.strategies == ("Pruner", "QAT")
    assert slim.settings == {"Pruner": {"pruned_ratios": 0.5}, "epoch": 3}
    single = load_slim_config(write(tmp_path / "s.yml", {"slim": "PTQ"}))
    assert single.strategies == ("PTQ",) and single.settings == {}


def test_slim_file_is_only_read(tmp_path: Path, fresh_config: Any) -> None:
    before = dict(fresh_config["Pruner"])
    load_slim_config(write(tmp_path / "s.yml", {"slim": "Pruner", "Pruner": {"align": 8}}))
    assert dict(fresh_config["Pruner"]) == before and "filename" not in fresh_config


@pytest.mark.parametrize("key", ["slimm", "Prunner", "epochs", "whatever"])
def test_slim_file_may_hold_no_unknown_key(tmp_path: Path, key: str) -> None:
    path = write(tmp_path / "s.yml", {"slim": "QAT", key: 1})
    with pytest.raises(ConfigError, match=f"s.yml: unknown key '{key}'"):
        load_slim_config(path)


@pytest.mark.parametrize("value", [1e30, "text", [1], True])
def test_settings_of_a_component_that_are_none(tmp_path: Path, value: Any) -> None:
    path = write(tmp_path / "s.yml", {"slim": "Pruner", "Pruner": value})
    with pytest.raises(ConfigError, match="s.yml: Pruner: expected a mapping of keys, found"):
        load_slim_config(path)


def test_every_key_of_the_trainer_is_known() -> None:
    """The keys that ppdet's Trainer reads may stand in any file."""
    from ppdet.engine import trainer

    read = set(re.findall(r"self\.cfg\.get\(\s*'(\w+)'", inspect.getsource(trainer)))
    others = {"imid2path", "save_proposals", "unstructured_prune"}  # of other methods
    assert {"use_vdl", "print_flops"} <= read - others <= config.TOP_LEVEL_KEYS


TEACHER = {"architecture": "YOLOv3", "num_classes": 7, "MobileNet": {"scale": 0.5}, "own_key": 1}


def write_historical(tmp_path: Path, **content: Any) -> Path:
    """A slim file shaped like PaddleDetection's: the teacher is its base."""
    write(tmp_path / "teacher.yml", TEACHER)
    base = {"_BASE_": ["teacher.yml"], "pretrain_weights": "teacher.pdparams"}
    loss = {"distill_loss": "DistillYOLOv3Loss", "DistillYOLOv3Loss": {"weight": 300}}
    return write(tmp_path / "s.yml", {**base, "slim": "Distill", **loss, **content})


def teacher_of(slim: SlimConfig) -> dict[str, Any]:
    return slim.settings["Distill"]["teacher"]


def test_distillation_names_its_teacher(tmp_path: Path) -> None:
    """Everything else of the file is the student's, its weights too."""
    teacher = {"config": "t.yml", "weights": "t.pdparams"}
    content = {
        "slim": ["Pruner", "Distill"],
        "Pruner": {"align": 8},
        "Distill": {"teacher": teacher, "loss": "l2"},
        "pretrain_weights": "student.pdparams",
        "epoch": 3,
    }
    slim = load_slim_config(write(tmp_path / "s.yml", content))
    assert slim.strategies == ("Pruner", "Distill") and teacher_of(slim) == teacher
    assert slim.settings == {key: value for key, value in content.items() if key != "slim"}


def test_historical_distillation(tmp_path: Path, fresh_config: Any) -> None:
    """What is not of the slim part is the teacher's, and reaches no student."""
    before = dict(fresh_config)
    slim = load_slim_config(write_historical(tmp_path))
    assert slim.strategies == ("Distill",)
    assert teacher_of(slim) == {"tree": TEACHER, "weights": "teacher.pdparams"}
    assert slim.settings == {
        "Distill": {"loss": "split", "weight": 300, "teacher": teacher_of(slim)}
    }
    assert dict(fresh_config) == before


def test_historical_distillation_of_a_pruned_student(tmp_path: Path) -> None:
    pruner = {"criterion": "l1_norm", "pruned_params": ["conv2d_27.w_0"], "pruned_ratios": [0.5]}
    path = write_historical(tmp_path, slim="DistillPrune", pruner="Pruner", Pruner=pruner)
    slim = load_slim_config(path)
    assert slim.strategies == ("Pruner", "Distill")
    assert slim.settings["Pruner"] == pruner and slim.settings.keys() == {"Pruner", "Distill"}
    assert teacher_of(slim) == {"tree": TEACHER, "weights": "teacher.pdparams"}


@pytest.mark.parametrize(
    ("content", "settings"),
    [
        ({"DistillYOLOv3Loss": {}}, {"loss": "split"}),
        ({"DistillYOLOv3Loss": None}, {"loss": "split"}),
        ({"distill_loss": None}, {"loss": "split", "weight": 300}),
        ({"distill_loss": None, "DistillYOLOv3Loss": None}, {}),
        ({"Distill": {"ramp_epochs": 2}}, {"loss": "split", "weight": 300, "ramp_epochs": 2}),
    ],
)
def test_historical_loss(tmp_path: Path, content: dict[str, Any], settings: dict[str, Any]) -> None:
    """A weight that is left out is the default of the split loss."""
    slim = load_slim_config(write_historical(tmp_path, **content))
    assert {k: v for k, v in slim.settings["Distill"].items() if k != "teacher"} == settings


def test_historical_loss_beside_a_named_teacher(tmp_path: Path) -> None:
    teacher = {"config": "t.yml", "weights": "t"}
    content = {"slim": "Distill", "distill_loss": "DistillYOLOv3Loss", "epoch": 2}
    slim = load_slim_config(write(tmp_path / "s.yml", {**content, "Distill": {"teacher": teacher}}))
    assert slim.settings == {"Distill": {"teacher": teacher, "loss": "split"}, "epoch": 2}


def test_teacher_without_weights_is_found_out_when_it_is_built(tmp_path: Path) -> None:
    """`-o Distill.teacher.weights=` may still follow."""
    path = write_historical(tmp_path, pretrain_weights=None)
    assert teacher_of(load_slim_config(path)) == {"tree": TEACHER}


def test_teacher_may_be_named_by_an_override(tmp_path: Path, fresh_config: Any) -> None:
    path = write(tmp_path / "s.yml", {"slim": "Distill", "Distill": {"loss": "l2"}})
    with pytest.raises(ConfigError, match=r"s\.yml: Distill.teacher is missing; expected teacher:"):
        load_slim_config(path)
    apply_overrides(["Distill.teacher.config=t.yml"])
    assert load_slim_config(path).settings == {"Distill": {"loss": "l2"}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"distill_loss": "CWDFeatureLoss"}, "distill_loss: 'CWDFeatureLoss' needs a slim_method"),
        ({"slim_method": "MGD"}, "slim_method: unknown method 'MGD'"),
        ({"slim": "DistillPrune", "pruner": "UnstructuredPruner"}, "pruner: 'UnstructuredPruner'"),
        ({"slim": "OFA"}, "unknown strategy 'OFA' (PaddleSlim's once-for-all training, which it"),
        ({"slim": "UnstructuredPruner"}, "(single weights set to zero, which no engine here runs"),
        ({"slim": "DistilPrune"}, "unknown strategy 'DistilPrune'; did you mean 'DistillPrune'?"),
        ({"slim": ["Distill", "Pruner"]}, "expected slim: [Pruner, Distill]"),
        ({"slim": ["Distill", "DistillPrune"]}, "slim: 'Distill' is named twice"),
        ({"Distill": 5}, "Distill: expected a mapping of keys, found 5"),
        ({"Distill": {"loss": "l2"}}, "Distill.loss and DistillYOLOv3Loss are both given"),
        ({"Distill": {"weight": 1}}, "Distill.weight and DistillYOLOv3Loss are both given"),
        ({"MobileNet": {"scal": 1}}, "MobileNet: unknown key 'scal'; did you mean 'scale'?"),
        ({"_BASE_": []}, "Distill.teacher is missing; expected teacher: {config: FILE.yml"),
    ],
)
def test_distillation_that_is_not_supported(
    tmp_path: Path, content: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_slim_config(write_historical(tmp_path, **content))
    line = str(caught.value)
    assert line.startswith(f"{tmp_path / 's.yml'}: ") and said in line and "\n" not in line

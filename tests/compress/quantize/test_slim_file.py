"""Slim files that quantize: from the text to a model, with weights that are float or quantized."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
import yaml

from slim_det.compress.prune.plan import plan_of
from slim_det.compress.quantize.model import quantized_layers
from slim_det.compress.quantize.observers import PtqOptions
from slim_det.compress.quantize.record import record_of
from slim_det.compress.quantize.strategy import PTQ, QAT
from slim_det.compress.steps import steps_of
from slim_det.compress.strategy import Context, postpone, postponed
from slim_det.compress.tensors import tensor_shapes
from slim_det.core.errors import ConfigError, QuantError
from slim_det.deploy.trainer_export import _export, _post_quant
from slim_det.training import checkpoint, session
from slim_det.training.config import SlimConfig, load_config, load_slim_config
from slim_det.training.ppdet_patches import build_slim_model

TIP = "neck.yolo_block.0.tip.conv.weight"
CONFIG = {"weight_bits": 8, "activation_bits": 8, "dtype": "int8"}


@pytest.fixture
def cfg(fresh_config: Any, tiny: Path) -> Any:
    return load_config(tiny)


def write(path: Path, **content: Any) -> Path:
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def slim(path: Path, *strategies: str, **content: Any) -> SlimConfig:
    """Write a slim file and merge it into the configuration."""
    return session.read_slim(str(write(path, slim=list(strategies), **content)))


@pytest.fixture(scope="session")
def quantized(tmp_path_factory: pytest.TempPathFactory, tiny: Path, unpruned: Path) -> Path:
    """Stem of weights that were quantized for training; ranges of one image."""
    from tests.support import restored_config

    stem = tmp_path_factory.mktemp("quantized") / "quantized"
    with restored_config():
        cfg = load_config(tiny)
        cfg["pretrain_weights"] = str(unpruned)
        wanted = slim(stem.with_name("s.yml"), "QAT", QAT={"calibration_images": 1})
        model = session.model_for_training(cfg, wanted)
        optimizer = paddle.optimizer.Momentum(0.1, parameters=model.parameters())
        checkpoint.save(stem, model.state_dict(), optimizer, 1, steps_of(model))
    return stem


class Unbuilt:
    """Stands for a strategy: notes what it was applied to."""

    def __init__(self, order: list[str], name: str) -> None:
        self.order, self.name = order, name

    def __call__(self, model: Any, context: Context) -> Any:
        self.order.append(self.name)
        return model


def test_prune_and_train_in_int8(cfg: Any, unpruned: Path, tmp_path: Path) -> None:
    """`PrunerQAT` in PaddleDetection's keys: pruned first, then calibrated at the width it has."""
    cfg["pretrain_weights"] = str(unpruned)
    section = {
        "criterion": "fpgm",
        "pruned_params": ["neck.yolo_block.0.tip"],
        "pruned_ratios": [0.5],
        "print_prune_params": False,
        "quant_config": CONFIG,
        "print_qat_model": False,
    }
    wanted = slim(tmp_path / "s.yml", "PrunerQAT", PrunerQAT=section)
    assert wanted.strategies == ("Pruner", "QAT")
    model = session.model_for_training(cfg, wanted)
    assert tensor_shapes(model)[TIP] == (128, 128, 3, 3)
    assert plan_of(model) is not None and len(record_of(model).layers) == 47
    layer = quantized_layers(model)["neck.yolo_block.0.tip"]
    assert layer.weight_ranges().shape == (128,) and layer.activation.range() != 1.0


def test_chain_is_applied_in_order(
    cfg: Any, unpruned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(session, "create", lambda name: Unbuilt(order, name))
    monkeypatch.setattr(session, "build_model", lambda cfg: paddle.nn.Conv2D(1, 1, 1))
    cfg["pretrain_weights"] = None
    teacher = {"config": "none.yml", "weights": "none"}
    content = {"Pruner": {"pruned_ratios": 0.5}, "Distill": {"teacher": teacher}, "QAT": {}}
    wanted = slim(tmp_path / "s.yml", "DistillPrune", "QAT", **content)
    session.model_for_training(cfg, wanted)
    assert order == ["Pruner", "Distill", "QAT"]


def test_historical_teacher_leaves_the_students_quantization(tmp_path: Path) -> None:
    """The file's other keys are the teacher's."""
    path = write(
        tmp_path / "s.yml",
        slim=["Distill", "QAT"],
        architecture="YOLOv3",
        num_classes=7,
        QAT={"quant_config": CONFIG},
    )
    found = load_slim_config(path)
    assert found.strategies == ("Distill", "QAT") and found.settings.keys() == {"Distill", "QAT"}
    assert found.settings["Distill"]["teacher"] == {
        "tree": {"architecture": "YOLOv3", "num_classes": 7}
    }


@pytest.mark.parametrize("how", ["pretrain", "resume", "weights"])
@pytest.mark.parametrize("with_slim", [False, True])
def test_record_beside_the_weights_wins(
    cfg: Any, quantized: Path, tmp_path: Path, how: str, with_slim: bool
) -> None:
    """Ranges are those of the file; a slim file that says the same only says when they freeze."""
    asked = {"quant_config": CONFIG, "calibration_images": 4, "freeze_epoch": 5}
    wanted = slim(tmp_path / "s.yml", "QAT", QAT=asked) if with_slim else None
    if how == "weights":
        model = session.model_with_weights(cfg, str(quantized), wanted)
    else:
        cfg["pretrain_weights"] = str(quantized) if how == "pretrain" else None
        resume = str(quantized) if how == "resume" else None
        model = session.model_for_training(cfg, wanted, resume)
    stored = paddle.load(f"{quantized}.pdparams", return_numpy=True)
    assert {n: p.shape for n, p in stored.items()} == {
        n: tuple(p.shape) for n, p in model.named_parameters()
    }
    for name, parameter in model.named_parameters():
        assert np.array_equal(parameter.numpy(), stored[name]), name
    origin = record_of(model).origin
    assert origin["freeze_epoch"] == (5 if with_slim else None) and origin["images"] == 1


@pytest.mark.parametrize("training", [False, True])
def test_weights_that_are_quantized_otherwise(
    cfg: Any, quantized: Path, tmp_path: Path, training: bool
) -> None:
    other = slim(tmp_path / "s.yml", "QAT", QAT={"quant_config": {"weight_bits": 4}})
    cfg["pretrain_weights"] = str(quantized)
    said = r"quantized otherwise than .*s\.yml asks for: weight_bits is 8 in the weights, 4 is"
    with pytest.raises(QuantError, match=said) as caught:
        if training:
            session.model_for_training(cfg, other)
        else:
            session.model_with_weights(cfg, str(quantized), other)
    assert "\n" not in str(caught.value)


def test_quantized_weights_are_not_pruned(cfg: Any, quantized: Path, tmp_path: Path) -> None:
    wanted = slim(tmp_path / "s.yml", "Pruner", "QAT", Pruner={"pruned_ratios": "r578"})
    with pytest.raises(
        QuantError, match="are quantized and .* asks for Pruner, which has to come first"
    ):
        session.model_with_weights(cfg, str(quantized), wanted)


@pytest.mark.parametrize(
    ("strategy", "said"),
    [
        ("QAT", r"are float weights and .*s\.yml asks for QAT; expected weights that `slim-det"),
        ("PTQ", r"are float weights and .*s\.yml asks for PTQ; expected `slim-det quantize"),
    ],
)
def test_float_weights_where_quantized_ones_are_expected(
    cfg: Any, unpruned: Path, tmp_path: Path, strategy: str, said: str
) -> None:
    wanted = slim(tmp_path / "s.yml", strategy)
    with pytest.raises(QuantError, match=said) as caught:
        session.model_with_weights(cfg, str(unpruned), wanted)
    assert "\n" not in str(caught.value)


def test_a_float_training_is_not_resumed_in_int8(cfg: Any, unpruned: Path, tmp_path: Path) -> None:
    wanted = slim(tmp_path / "s.yml", "QAT")
    with pytest.raises(QuantError, match=r"expected -o pretrain_weights=.* instead of -r"):
        session.model_for_training(cfg, wanted, str(unpruned))


def test_calibration_does_not_train(cfg: Any, unpruned: Path, tmp_path: Path) -> None:
    cfg["pretrain_weights"] = str(unpruned)
    with pytest.raises(ConfigError, match="'PTQ' does not train; expected 'QAT', or `slim-det"):
        session.model_for_training(cfg, slim(tmp_path / "s.yml", "PTQ"))


def test_post_quant_script_gets_a_float_model(cfg: Any, unpruned: Path, tmp_path: Path) -> None:
    """Through ppdet's own name and mode; what is to be done hangs on it."""
    cfg["weights"] = str(unpruned)
    config = {"activation_quantizer": "HistQuantizer", "hist_percent": 0.999}
    path = write(tmp_path / "s.yml", slim="PTQ", PTQ={"ptq_config": config, "fuse": True})
    model = build_slim_model(cfg, str(path), mode="test")["model"]
    assert record_of(model) is None
    options = postponed(model).options(batch_size=4)
    assert (options.observer, options.percent, options.images) == ("hist", 0.999, 40)
    with pytest.raises(QuantError, match="asks for PTQ"):
        build_slim_model(cfg, str(path), mode="eval")


class FakeTrainer:
    """What `Trainer.post_quant` and `Trainer.export` read."""

    def __init__(self, model: Any) -> None:
        self.model, self.cfg = model, {"EvalReader": {"batch_size": 4}}


def waiting(ptq: PTQ) -> paddle.nn.Layer:
    """A model that is to be calibrated on command."""
    model = paddle.nn.Conv2D(1, 1, 1)
    postpone(model, ptq)
    return model


def test_post_quant_calibrates_then_exports(monkeypatch: pytest.MonkeyPatch) -> None:
    import ppdet.engine.trainer

    from slim_det.compress.quantize import strategy
    from slim_det.deploy import accuracy_control, artifact
    from slim_det.evaluate.data import check

    class Metric:
        """Of the model before it is calibrated."""

        def __init__(self, *arguments: Any) -> None:
            assert not done

        def in_float(self) -> Any:
            return argparse.Namespace(ap=0.75)

    done: list[Any] = []
    monkeypatch.setattr(strategy, "run_ptq", lambda *arguments: done.append(arguments))
    monkeypatch.setattr(artifact, "export_model", lambda *given, **more: done.append((given, more)))
    monkeypatch.setattr(accuracy_control, "DeployedMetric", Metric)
    monkeypatch.setattr(check, "check_dataset", lambda cfg, name: 1)
    trainer = FakeTrainer(waiting(PTQ(observer="mse")))
    ppdet.engine.trainer.Trainer.post_quant(trainer, "folder")
    calibrated, exported = done
    assert calibrated[3] == PtqOptions("mse", images=40)
    assert exported == ((trainer.model, trainer.cfg, "folder"), {"in_float": 0.75})


def test_post_quant_needs_a_float_model_and_a_slim_file(quantized: Path, cfg: Any) -> None:
    with pytest.raises(ConfigError, match="expected --slim_config with slim: PTQ"):
        _post_quant(FakeTrainer(paddle.nn.Conv2D(1, 1, 1)))
    model = session.model_with_weights(cfg, str(quantized))
    with pytest.raises(QuantError, match="quantized already"):
        _post_quant(FakeTrainer(model))


def test_a_float_model_is_not_exported_as_a_calibrated_one() -> None:
    trainer = FakeTrainer(waiting(PTQ()))
    with pytest.raises(ConfigError, match="still in float: PTQ has not calibrated it"):
        _export(trainer)


def test_overrides_reach_the_strategy(cfg: Any, tmp_path: Path) -> None:
    from ppdet.core.workspace import create

    from slim_det.training.config import apply_overrides

    slim(tmp_path / "s.yml", "PrunerQAT", PrunerQAT={"quant_config": CONFIG})
    apply_overrides(["QAT.quant_config.weight_bits=4", "QAT.freeze_bn_epoch=0"])
    found = create("QAT")
    assert isinstance(found, QAT) and found.settings.weight_bits == 4
    assert found.schedule["freeze_bn_epoch"] == 0
    with pytest.raises(ConfigError, match="expected -o QAT.print_model=VALUE"):
        apply_overrides(["PrunerQAT.print_qat_model=True"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"slim": "QAT", "QAT": {"quant_conf": {}}}, "QAT: unknown key 'quant_conf'; did you mean"),
        ({"slim": "PTQ", "PTQ": {"observers": 1}}, "PTQ: unknown key 'observers'; did you mean"),
        ({"slim": ["QAT", "PTQ"]}, "exclude each other"),
        ({"slim": "PrunerQAT", "PrunerQAT": {"x": 1}}, "PrunerQAT: unknown key 'x'"),
        ({"slim": "QTA"}, "unknown strategy 'QTA'; did you mean 'QAT'?"),
    ],
)
def test_files_that_are_wrong(
    tmp_path: Path, fresh_config: Any, content: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_slim_config(write(tmp_path / "s.yml", **content))
    assert said in str(caught.value) and "\n" not in str(caught.value)

"""Checkpoints of a small net whose plan is written by hand."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest

from slim_det.compress.distill.distiller import Distiller
from slim_det.compress.prune.plan import Plan, plan_of
from slim_det.compress.steps import steps_of
from slim_det.compress.strategy import step_path
from slim_det.core.errors import PlanError, WeightsError
from slim_det.training import checkpoint
from tests.training.small_checkpoints import (
    KEPT,
    make_net,
    make_pruned,
    make_quantized,
    momentum,
    same,
    save,
    values,
)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """What slim_det has logged."""
    caplog.set_level(logging.INFO, "slim_det")
    return lambda: caplog.text


def test_unpruned_model_comes_back(tmp_path: Path) -> None:
    """By stem or by any file's name; no plan is written."""
    net, stem = make_net(), tmp_path / "1.5"
    save(stem, net)
    assert {p.name for p in tmp_path.iterdir()} == {"1.5.pdparams", "1.5.pdopt"}
    for spelling in (stem, f"{stem}.pdparams", f"{stem}.pdopt"):
        other = make_net()
        assert not same(net, other)
        checkpoint.load_weights(other, spelling)
        assert same(net, other) and plan_of(other) is None


class TwoNames(paddle.nn.Layer):
    """A layer that is an attribute and an entry of a list, and a constant, as in PicoDet's head."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = paddle.nn.LayerList([paddle.nn.Linear(2, 3)])
        self.again = self.layers[0]
        self.register_buffer("project", paddle.linspace(0, 7, 8))


def test_parameters_with_two_names(tmp_path: Path) -> None:
    """One value under both names is loaded, and so is one name alone; two values are refused."""
    net = TwoNames()
    assert {"layers.0.weight", "again.weight", "project"} <= net.state_dict().keys()
    checkpoint.save_weights(tmp_path / "x", net.state_dict())
    for load in (checkpoint.load_weights, checkpoint.load_pretrained):
        other = TwoNames()
        load(other, tmp_path / "x")
        assert same(net, other)
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    del state["layers.0.weight"], state["project"]
    checkpoint.save_weights(tmp_path / "x", state)
    other = TwoNames()
    checkpoint.load_weights(other, tmp_path / "x")
    assert same(net, other)
    state["again.bias"] = state["again.bias"] + 1
    checkpoint.save_weights(tmp_path / "x", state)
    with pytest.raises(
        WeightsError, match="'again.bias' and 'layers.0.bias' are one parameter and"
    ):
        checkpoint.load_weights(TwoNames(), tmp_path / "x")


def test_constants_of_other_settings(tmp_path: Path) -> None:
    net = TwoNames()
    state = {name: value.numpy() for name, value in net.state_dict().items()}
    checkpoint.save_weights(tmp_path / "x", {**state, "project": state["project"] * (1 + 1e-5)})
    checkpoint.load_weights(TwoNames(), tmp_path / "x")
    for project in (state["project"] + 1, state["project"][1:]):
        checkpoint.save_weights(tmp_path / "x", {**state, "project": project})
        with pytest.raises(WeightsError, match="'project' is not what the configuration gives"):
            checkpoint.load_weights(TwoNames(), tmp_path / "x")


def test_pruned_model_is_pruned_again_when_loaded(tmp_path: Path) -> None:
    """The plan is replayed: shapes, channel counts and values."""
    pruned = make_pruned()
    stem = save(tmp_path / "pruned", pruned)
    unpruned = make_net()
    checkpoint.load_weights(unpruned, stem)
    assert same(pruned, unpruned)
    conv, norm = unpruned.backbone[0], unpruned.backbone[1]
    assert (conv._out_channels, norm._num_features, unpruned.head._in_channels) == (3, 3, 3)
    assert plan_of(unpruned).to_json() == plan_of(pruned).to_json()
    assert unpruned.head(paddle.zeros([1, 3, 2, 2])).shape == [1, 4, 2, 2]


def test_plan_of_an_earlier_run_goes_away(tmp_path: Path) -> None:
    """Unpruned weights saved over pruned ones are not pruned when they are loaded."""
    stem = save(tmp_path / "x", make_pruned())
    save(stem, make_net())
    assert not step_path(stem, Plan).exists()
    checkpoint.load_weights(make_net(), stem)


def test_auxiliary_modules_of_an_earlier_distillation_go_away(tmp_path: Path) -> None:
    stem = tmp_path / "x"
    for path in (step_path(stem, Distiller), step_path(tmp_path / "y", Distiller)):
        path.write_bytes(b"")
    save(stem, make_net())
    assert {path.name for path in tmp_path.glob("*.companions.pdparams")} == {
        "y.companions.pdparams"
    }


@pytest.mark.parametrize("averaged", [False, True])
def test_weights_are_renamed_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, averaged: bool
) -> None:
    """Killed between two renames, a checkpoint without its weights does not count as one."""
    targets: list[str] = []
    replace = os.replace

    def record(source: str, target: Path) -> None:
        targets.append(Path(target).name)
        replace(source, target)

    monkeypatch.setattr(os, "replace", record)
    net = make_quantized(make_pruned())
    ema_state = net.state_dict() if averaged else None
    save(tmp_path / "x", net, ema_state=ema_state, best={"ap": 0.5})
    assert targets[-1] == "x.pdparams"
    others = {"x.plan.json", "x.quant.json", "x.json", "x.pdopt"}
    assert set(targets[:-1]) == others | ({"x.pdema"} if averaged else set())


def test_average_and_weights_change_places(tmp_path: Path) -> None:
    """With a moving average, `.pdparams` is the average and `.pdema` what was trained."""
    average, trained = make_net(), make_net()
    stem = tmp_path / "x"
    checkpoint.save(
        stem, trained.state_dict(), momentum(trained), 1, ema_state=average.state_dict()
    )
    loaded = make_net()
    checkpoint.load_weights(loaded, stem)
    assert same(loaded, average)
    assert np.array_equal(
        paddle.load(f"{stem}.pdema", return_numpy=True)["head.bias"], trained.head.bias.numpy()
    )


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        (lambda s: s.pop("head.bias"), "head.bias is only in the model"),
        (lambda s: s.update(extra=paddle.ones([2])), "extra is only in the file"),
        (
            lambda s: s.update({"head.bias": paddle.ones([5])}),
            "head.bias is [5] in the file and [4] in the model",
        ),
    ],
)
def test_tensor_that_does_not_fit_is_named(
    tmp_path: Path, change: Callable[[dict], Any], phrase: str
) -> None:
    """And nothing of the file is loaded."""
    state = make_net().state_dict()
    change(state)
    paddle.save(dict(state), str(tmp_path / "x.pdparams"))
    net = make_net()
    before = values(net)
    with pytest.raises(WeightsError) as caught:
        checkpoint.load_weights(net, tmp_path / "x")
    assert phrase in str(caught.value)
    assert all(np.array_equal(before[name], value) for name, value in values(net).items())


def test_only_the_first_differences_are_shown(tmp_path: Path) -> None:
    paddle.save({f"t{i}": paddle.ones([1]) for i in range(3)}, str(tmp_path / "x.pdparams"))
    with pytest.raises(WeightsError, match=r"t0 is only .*; t1 .*; and 6 more"):
        checkpoint.load_weights(make_net(), tmp_path / "x")


def test_plan_of_another_model(tmp_path: Path) -> None:
    stem = save(tmp_path / "x", make_pruned())
    with pytest.raises(
        PlanError, match=r"x.plan.json': the plan belongs to another model: backbone\.0"
    ):
        checkpoint.load_weights(make_net(width=8), stem)


def test_model_that_was_pruned_otherwise(tmp_path: Path) -> None:
    stem = save(tmp_path / "x", make_pruned())
    checkpoint.load_weights(make_pruned(), stem)
    with pytest.raises(PlanError, match="cuts other channels"):
        checkpoint.load_weights(make_pruned(np.array([0, 1, 2])), stem)


def test_start_from_a_backbone(tmp_path: Path, said: Callable[[], str]) -> None:
    """A file without the leading `backbone.` fits; the rest of the model stays as it was."""
    source, net = make_net(), make_net()
    head = net.head.weight.numpy()
    state = {n[len("backbone.") :]: p for n, p in source.state_dict().items() if "backbone" in n}
    paddle.save({**state, "fc.weight": paddle.ones([3])}, str(tmp_path / "b.pdparams"))
    checkpoint.load_pretrained(net, tmp_path / "b.pdparams")
    assert np.array_equal(net.backbone[0].weight.numpy(), source.backbone[0].weight.numpy())
    assert np.array_equal(net.head.weight.numpy(), head)
    assert "6 of 8 tensors" in said()
    assert "not in the file: head.weight, head.bias; not used: fc.weight" in said()


def test_start_with_another_number_of_classes(tmp_path: Path, said: Callable[[], str]) -> None:
    """Only prediction layers may differ; they keep their own values."""
    source, net = make_net(classes=9), make_net()
    stem = save(tmp_path / "x", source)
    head = net.head.weight.numpy()
    checkpoint.load_pretrained(net, stem)
    assert np.array_equal(net.backbone[0].weight.numpy(), source.backbone[0].weight.numpy())
    assert np.array_equal(net.head.weight.numpy(), head)
    assert "6 of 8 tensors" in said() and "other classes: head.weight, head.bias" in said()


def test_start_from_another_width_is_refused(tmp_path: Path) -> None:
    stem = save(tmp_path / "x", make_net(width=8))
    with pytest.raises(WeightsError, match=r"of another width: backbone\.0\.weight is \[8, 3"):
        checkpoint.load_pretrained(make_net(), stem)


def test_start_from_something_else_is_refused(tmp_path: Path) -> None:
    paddle.save({"a": paddle.ones([1]), "b": paddle.ones([1])}, str(tmp_path / "x.pdparams"))
    with pytest.raises(WeightsError, match="no tensor of this model; they hold a, b"):
        checkpoint.load_pretrained(make_net(), tmp_path / "x")


def test_start_from_pruned_weights_prunes_the_model(tmp_path: Path) -> None:
    pruned = make_pruned()
    net = make_net()
    checkpoint.load_pretrained(net, save(tmp_path / "x", pruned))
    assert same(net, pruned) and plan_of(net) is not None


def test_resume_gives_the_epoch_to_go_on_with(tmp_path: Path) -> None:
    pruned = make_pruned()
    stem = save(tmp_path / "x", pruned, last_epoch=7)
    net = make_net()
    checkpoint.load_weights(net, stem)
    assert checkpoint.resume(net, stem, momentum(net)) == 7
    assert same(net, pruned)


def test_resume_prunes_an_unpruned_checkpoint_like_the_model(tmp_path: Path) -> None:
    """What `-r` with a slim file does: the kept channels of the unpruned weights."""
    unpruned = make_net()
    stem = save(tmp_path / "x", unpruned)
    pruned = make_pruned()
    checkpoint.resume(pruned, stem, momentum(pruned))
    assert np.array_equal(
        pruned.backbone[0].weight.numpy(), unpruned.backbone[0].weight.numpy()[KEPT]
    )
    assert np.array_equal(pruned.head.weight.numpy(), unpruned.head.weight.numpy()[:, KEPT])
    assert np.array_equal(pruned.head.bias.numpy(), unpruned.head.bias.numpy())


def test_resume_names_what_an_unpruned_checkpoint_lacks(tmp_path: Path) -> None:
    state = {n: p for n, p in make_net().state_dict().items() if n != "backbone.0.weight"}
    paddle.save(state, str(tmp_path / "x.pdparams"))
    with pytest.raises(WeightsError, match=r"backbone\.0\.weight is only in the model"):
        checkpoint.resume(make_pruned(), tmp_path / "x")


def test_resume_refuses_another_pruning(tmp_path: Path) -> None:
    stem = save(tmp_path / "x", make_pruned())
    net = make_pruned(np.array([0, 1, 2]))
    with pytest.raises(PlanError, match="resume without --slim_config"):
        checkpoint.resume(net, stem, momentum(net))


def test_resume_restores_the_moving_average(tmp_path: Path) -> None:
    """Trained weights go to the model, the average and its step count to the average."""
    from ppdet.optimizer import ModelEMA

    average, trained, net = make_pruned(), make_pruned(), make_pruned()
    optimizer = paddle.optimizer.Momentum(
        paddle.optimizer.lr.StepDecay(0.1, 5), 0.9, parameters=trained.parameters()
    )
    optimizer._learning_rate.step()
    optimizer._learning_rate.step()
    state, averaged = trained.state_dict(), average.state_dict()
    checkpoint.save(tmp_path / "x", state, optimizer, 1, steps_of(net), ema_state=averaged)
    ema = ModelEMA(net)
    other = paddle.optimizer.Momentum(
        paddle.optimizer.lr.StepDecay(0.1, 5), 0.9, parameters=net.parameters()
    )
    checkpoint.resume(net, tmp_path / "x", other, ema)
    assert same(net, trained)
    assert np.array_equal(ema.state_dict["head.weight"].numpy(), average.head.weight.numpy())
    assert ema.step == 2


def test_address_that_answers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppdet.utils import checkpoint as ppdet_checkpoint

    def fail(url: str) -> str:
        raise RuntimeError("no network")

    monkeypatch.setattr(ppdet_checkpoint, "get_weights_path", fail)
    with pytest.raises(WeightsError, match="'https://no.such/x' cannot be downloaded: no network"):
        checkpoint.checkpoint_stem("https://no.such/x")


def test_address_that_was_downloaded_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """ppdet asks the server about its own copy; without a network the copy is good enough."""
    from ppdet.utils import checkpoint as ppdet_checkpoint
    from ppdet.utils import download

    def fail(url: str) -> str:
        raise RuntimeError("no network")

    monkeypatch.setattr(ppdet_checkpoint, "get_weights_path", fail)
    monkeypatch.setattr(download, "WEIGHTS_HOME", str(tmp_path))
    (tmp_path / "x.pdparams").write_bytes(b"")
    with caplog.at_level(logging.WARNING, "slim_det"):
        stem = checkpoint.checkpoint_stem("https://no.such/models/x.pdparams")
    assert stem == tmp_path / "x"
    assert "cannot be reached" in caplog.text and "unchecked" in caplog.text

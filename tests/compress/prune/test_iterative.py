"""The later steps of a schedule, made in the middle of a training as ppdet trains."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.utils import unique_name
from ppdet.core.workspace import AttrDict
from ppdet.optimizer import ModelEMA

from slim_det.compress.prune import iterative
from slim_det.compress.prune.iterative import IterativePruning
from slim_det.compress.prune.plan import Plan
from slim_det.compress.prune.pruner import Pruner
from slim_det.compress.steps import Step, attach_step
from slim_det.compress.strategy import Context
from slim_det.compress.tensors import tensor_shapes
from slim_det.core.errors import ConfigError
from slim_det.training import checkpoint
from slim_det.training.checkpoint_saver import CheckpointSaver
from tests.compress.prune.test_pruner import Detector

EPOCHS = 6
RATIOS = {"inner": 2 / 3, "stem": 0.5}
WIDTHS = [(4, 3), (3, 3), (2, 2)]
"""Channels of `inner` (of 6) and `stem` (of 4) after each of three steps."""


@pytest.fixture(autouse=True)
def _config(fresh_config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ppdet's own settings; ppdet builds our small detector."""
    monkeypatch.setattr(iterative, "build_detector", lambda cfg: detector())


def detector() -> Detector:
    paddle.seed(5)
    with unique_name.guard():
        return Detector()


def stepwise(**schedule: Any) -> Detector:
    """The detector after the first of three steps of two epochs."""
    settings = {"steps": 3, "epochs": 2, **schedule}
    pruner = Pruner(pruned_ratios=RATIOS, schedule=settings)
    return pruner(detector(), Context({}, (8, 8), build_detector=detector))


class FakeTrainer:
    """Trains as ppdet's Trainer does, one step per epoch, and evaluates after each epoch."""

    def __init__(self, folder: Path, model: Any, ema: bool = False, **cfg: Any) -> None:
        settings = {"save_dir": str(folder), "filename": "run", "snapshot_epoch": 1}
        self.cfg = AttrDict(architecture="Detector", **{"epoch": EPOCHS, **settings, **cfg})
        self.model, self.use_ema, self.start_epoch = model, ema, 0
        self.use_amp, self.amp_level = bool(cfg.get("amp_level")), cfg.get("amp_level")
        self.lr = paddle.optimizer.lr.StepDecay(0.02, step_size=1, gamma=0.5)
        self.optimizer = paddle.optimizer.Momentum(self.lr, 0.9, parameters=model.parameters())
        if ema:
            self.ema = ModelEMA(model, decay=0.9)
        self.hook, self.saver = IterativePruning(self), CheckpointSaver(self)
        self.widths: list[tuple[int, int]] = []
        self.rates: list[float] = []

    def resume(self, stem: Path) -> None:
        average = self.ema if self.use_ema else None
        self.start_epoch = checkpoint.resume(self.model, stem, self.optimizer, average)

    def train(self, until: int | None = None) -> None:
        status: dict[str, Any] = {}
        self.hook.on_train_begin(status)
        for epoch in range(self.start_epoch, until or self.cfg.epoch):
            status.update(mode="train", epoch_id=epoch)
            self.hook.on_epoch_begin(status)
            self.model.train()
            self._step(epoch)
            if self.use_ema:
                self.ema.update()
                status["weight"] = {k: v.clone() for k, v in self.model.state_dict().items()}
                self.model.set_dict(self.ema.apply())
            self.saver.on_epoch_end(status)
            self.hook.on_epoch_begin(status)  # that of the evaluation
            self.model.eval()
            self.model({"image": paddle.ones([1, 3, 8, 8])})
            if self.use_ema:
                self.model.set_dict(status.pop("weight"))
            width = tensor_shapes(self.model)
            self.widths.append((width["inner.weight"][0], width["stem.weight"][0]))

    def _step(self, epoch: int) -> None:
        image = np.random.default_rng(epoch).normal(size=(2, 3, 8, 8)).astype("float32")
        self.rates.append(self.optimizer.get_lr())
        (self.model({"image": paddle.to_tensor(image)}) - 1.0).square().mean().backward()
        with unique_name.guard():
            self.optimizer.step()
        self.lr.step()
        self.optimizer.clear_grad()


def load(stem: Path, suffix: str = ".pdparams") -> dict[str, Any]:
    return paddle.load(f"{stem}{suffix}", return_numpy=True)


def test_each_step_at_its_epoch(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = stepwise()
    objects = dict(model.named_parameters())
    trainer = FakeTrainer(tmp_path, model)
    with caplog.at_level(logging.INFO, logger="slim_det"):
        trainer.train()
    assert trainer.widths == [width for width in WIDTHS for _ in range(2)]
    assert all(param is objects[name] for name, param in model.named_parameters())
    assert "epoch 2: step 2 of 3 of pruning" in caplog.text
    assert "epoch 4: step 3 of 3 of pruning" in caplog.text
    assert caplog.text.count("of pruning") == 2


def test_every_checkpoint_has_the_plan_of_its_weights(tmp_path: Path) -> None:
    """One plan each, against the original model; what is loaded is what was trained."""
    trainer = FakeTrainer(tmp_path, stepwise())
    trainer.train()
    stems = [tmp_path / "run" / name for name in ("0", "1", "2", "3", "4", "model_final")]
    plans = [Plan.read(f"{stem}.plan.json") for stem in stems]
    assert [plan.steps.done for plan in plans] == [1, 1, 2, 2, 3, 3]
    assert len({plan.fingerprint for plan in plans}) == 1
    assert plans[-1].settings["ratios"] == RATIOS and "earlier" not in plans[-1].settings
    for stem, width in zip(stems, trainer.widths):
        model = detector()
        checkpoint.load_weights(model, stem)
        assert model.inner.weight.shape[0] == width[0]
    for name, param in trainer.model.named_parameters():
        np.testing.assert_array_equal(dict(model.named_parameters())[name].numpy(), param.numpy())


@pytest.mark.parametrize("ema", [False, True])
@pytest.mark.parametrize("killed_after", range(1, EPOCHS))
def test_resumed_it_ends_at_the_same_weights(tmp_path: Path, killed_after: int, ema: bool) -> None:
    """To the last bit, wherever it was killed: in front of a step, behind one, between two.

    A moving average, which ppdet resumes from its corrected value, only keeps its shape.
    """
    straight = FakeTrainer(tmp_path / "straight", stepwise(), ema)
    straight.train()
    FakeTrainer(tmp_path / "again", stepwise(), ema).train(until=killed_after)
    stem = tmp_path / "again" / "run" / str(killed_after - 1)
    model = detector()
    checkpoint.load_weights(model, stem)
    resumed = FakeTrainer(tmp_path / "again", model, ema)
    resumed.resume(stem)
    assert resumed.start_epoch == killed_after
    resumed.train()
    assert resumed.widths == straight.widths[killed_after:]
    left, right = (tmp_path / name / "run" / "model_final" for name in ("straight", "again"))
    assert plan_text(left) == plan_text(right)
    trained = ".pdema" if ema else ".pdparams"
    for name, value in load(left, trained).items():
        np.testing.assert_array_equal(value, load(right, trained)[name], name)
    assert shapes(load(left)) == shapes(load(right)) == shapes(load(left, trained))


def shapes(state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: value.shape for name, value in state.items()}


def plan_text(stem: Path) -> str:
    return Path(f"{stem}.plan.json").read_text()


def test_the_learning_rate_starts_again_if_asked(tmp_path: Path) -> None:
    """After each step, also in a training that is resumed just then or in between."""
    plain = FakeTrainer(tmp_path / "plain", stepwise())
    plain.train()
    assert plain.rates == pytest.approx([0.02 * 0.5**epoch for epoch in range(EPOCHS)])
    folder = tmp_path / "restarted"
    trainer = FakeTrainer(folder, stepwise(restart_lr=True))
    trainer.train()
    assert trainer.rates == pytest.approx([0.02, 0.01] * 3)
    for done in (2, 3):
        model = detector()
        checkpoint.load_weights(model, folder / "run" / str(done - 1))
        resumed = FakeTrainer(tmp_path / str(done), model)
        resumed.resume(folder / "run" / str(done - 1))
        resumed.train()
        assert resumed.rates == pytest.approx(trainer.rates[done:])


def test_a_resumed_model_that_was_cut_after_the_optimizer_was_made(tmp_path: Path) -> None:
    """As with a script: the unpruned detector gets its plan with the checkpoint."""
    FakeTrainer(tmp_path, stepwise()).train(until=3)
    trainer = FakeTrainer(tmp_path, detector())
    trainer.resume(tmp_path / "run" / "2")
    trainer.train()
    assert trainer.widths == [WIDTHS[1], WIDTHS[2], WIDTHS[2]]


def test_a_new_training_leaves_the_weights_as_they_are(tmp_path: Path) -> None:
    """With weights from between two steps; three epochs would be too short for the schedule."""
    FakeTrainer(tmp_path, stepwise()).train(until=3)
    model = detector()
    checkpoint.load_pretrained(model, tmp_path / "run" / "2")
    trainer = FakeTrainer(tmp_path / "new", model, epoch=3)
    trainer.train()
    assert trainer.widths == [WIDTHS[1]] * 3


def test_a_plain_cut_has_nothing_left(tmp_path: Path) -> None:
    model = Pruner(pruned_ratios=RATIOS)(detector(), Context({}, (8, 8)))
    trainer = FakeTrainer(tmp_path, model)
    trainer.train()
    assert trainer.widths == [WIDTHS[-1]] * EPOCHS
    FakeTrainer(tmp_path, detector())  # nor has a model that is not pruned


def test_the_random_state_of_the_training_stays(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path, stepwise())
    trainer.train(until=2)
    paddle.seed(11)
    expected = paddle.rand([4]).numpy()
    paddle.seed(11)
    trainer.hook.before_train_epoch({"epoch_id": 2})
    assert trainer.model.inner.weight.shape[0] == WIDTHS[1][0]
    np.testing.assert_array_equal(paddle.rand([4]).numpy(), expected)


@dataclass
class Rounded(Step):
    """A step that changes the model in its own way."""

    state = "rounded"


@dataclass
class Watched(Step):
    """A step of the training only, bound to the shapes of some layers or not."""

    changes_model = False
    reason: str = field(default="")

    @property
    def forbids_slicing(self) -> str:
        return self.reason


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (Rounded(), "no channel can be removed in this training: the model is rounded; do it in"),
        (
            Watched("it measures layers"),
            "in this training: it measures layers; do it in a training",
        ),
    ],
)
def test_what_cannot_lose_channels(tmp_path: Path, step: Step, message: str) -> None:
    model = stepwise()
    attach_step(model, step)
    with pytest.raises(ConfigError, match=message):
        FakeTrainer(tmp_path, model)
    assert list(tmp_path.iterdir()) == []


def test_what_only_watches_is_no_hindrance(tmp_path: Path) -> None:
    model = stepwise()
    attach_step(model, Watched())
    FakeTrainer(tmp_path, model)


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        ({"to_static": True}, "a compiled model cannot lose channels; leave to_static out"),
        ({"fleet": True}, "cannot be removed in a distributed training; expected a single process"),
        ({"amp_level": "O2"}, "expected amp_level: O1"),
        ({"epoch": 5}, "3 steps of 2 epochs take 6 and epoch is 5; add -o epoch=6"),
    ],
)
def test_trainings_that_cannot_lose_channels(
    tmp_path: Path, cfg: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        FakeTrainer(tmp_path, stepwise(), **cfg)
    assert "\n" not in str(caught.value)


def test_several_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iterative.dist, "get_world_size", lambda: 2)
    with pytest.raises(ConfigError, match="cannot be removed in a distributed training"):
        FakeTrainer(tmp_path, stepwise())
    FakeTrainer(tmp_path, Pruner(pruned_ratios=RATIOS)(detector(), Context({}, (8, 8))))


def test_a_resumed_training_is_checked_when_it_begins(tmp_path: Path) -> None:
    """Its schedule comes with the checkpoint, after the hook was made."""
    FakeTrainer(tmp_path, stepwise()).train(until=2)
    trainer = FakeTrainer(tmp_path, detector(), epoch=5)
    trainer.resume(tmp_path / "run" / "1")
    with pytest.raises(ConfigError, match="take 6 and epoch is 5"):
        trainer.train()


def test_a_checkpoint_that_has_missed_steps(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path, stepwise())
    trainer.start_epoch = 4
    with pytest.raises(
        ConfigError, match="has had 1 of 3 steps of its schedule and epoch 4 is pas"
    ):
        trainer.train()

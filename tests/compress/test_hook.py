"""What a hook is told, whatever ppdet's Trainer writes into its status."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from slim_det.compress import hook as base
from slim_det.compress.hook import Hook


class Recorder(Hook):
    """Writes down which of its methods was called."""

    def __init__(self) -> None:
        super().__init__(SimpleNamespace())
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def after_train_epoch(self, status: dict[str, Any]) -> None:
        self.calls.append(("train", status))

    def after_evaluation(self, status: dict[str, Any]) -> None:
        self.calls.append(("eval", status))


@pytest.mark.parametrize(
    ("status", "called"),
    [
        ({"mode": "train", "epoch_id": 3}, ["train"]),
        ({"mode": "eval", "epoch_id": 3}, ["eval"]),
        ({"epoch_id": 3}, []),
        ({}, []),
    ],
)
def test_end_of_an_epoch(status: dict[str, Any], called: list[str]) -> None:
    hook = Recorder()
    hook.on_epoch_end(status)
    assert [name for name, _ in hook.calls] == called
    assert all(given is status for _, given in hook.calls)


class Timeline(Hook):
    """Writes down the moments of training, in order."""

    def __init__(self) -> None:
        super().__init__(SimpleNamespace())
        self.calls: list[str] = []

    def before_training(self, status: dict[str, Any]) -> None:
        self.calls.append("training")

    def before_train_epoch(self, status: dict[str, Any]) -> None:
        self.calls.append(f"epoch {status['epoch_id']}")

    def before_train_step(self, status: dict[str, Any]) -> None:
        self.calls.append(f"step {status['step_id']}")

    def after_train_step(self, status: dict[str, Any]) -> None:
        self.calls.append("stepped")

    def after_train_epoch(self, status: dict[str, Any]) -> None:
        self.calls.append("trained")

    def after_evaluation(self, status: dict[str, Any]) -> None:
        self.calls.append("evaluated")


def train_as_ppdet(hook: Hook, epochs: range) -> None:
    """What ppdet's Trainer calls: each epoch of one step is followed by an evaluation."""
    status: dict[str, Any] = {"epoch_id": epochs.start, "step_id": 0}
    hook.on_train_begin(status)
    for epoch in epochs:
        status.update(mode="train", epoch_id=epoch)
        hook.on_epoch_begin(status)
        hook.on_step_begin(status)
        hook.on_step_end(status)
        hook.on_epoch_end(status)
        hook.on_epoch_begin(status)  # of the evaluation; the mode is set afterwards
        status["mode"] = "eval"
        hook.on_step_begin(status)
        hook.on_step_end(status)
        hook.on_epoch_end(status)


def test_moments_of_training_and_none_of_evaluation() -> None:
    hook = Timeline()
    train_as_ppdet(hook, range(1, 3))
    steps = ["step 0", "stepped", "trained", "evaluated"]
    assert hook.calls == ["training", "epoch 1", *steps, "epoch 2", *steps]


def test_training_again_begins_anew() -> None:
    hook = Timeline()
    for _ in range(2):
        train_as_ppdet(hook, range(1))
    assert hook.calls.count("epoch 0") == 2


def test_evaluation_alone_is_no_training() -> None:
    hook = Timeline()
    hook.on_epoch_begin({})
    hook.on_step_begin({"mode": "eval", "step_id": 0})
    hook.on_epoch_end({"mode": "eval", "epoch_id": 0})
    assert hook.calls == ["evaluated"]


@pytest.mark.parametrize(
    ("epoch", "name"), [(0, None), (1, "1"), (2, None), (3, "3"), (4, "model_final")]
)
def test_names_of_snapshots(epoch: int, name: str | None) -> None:
    hook = Hook(SimpleNamespace(cfg=SimpleNamespace(epoch=5, snapshot_epoch=2)))
    assert hook.snapshot_name({"epoch_id": epoch}) == name


def test_a_plain_hook_does_nothing_at_any_moment() -> None:
    hook = Hook(SimpleNamespace())
    for moment in ("step_begin", "step_end", "epoch_begin", "epoch_end", "train_begin"):
        getattr(hook, f"on_{moment}")({"mode": "train"})
    hook.on_epoch_end({"mode": "eval"})


@pytest.mark.parametrize(("size", "rank", "main"), [(1, 0, True), (2, 0, True), (2, 1, False)])
def test_first_process_is_the_main_one(
    monkeypatch: pytest.MonkeyPatch, size: int, rank: int, main: bool
) -> None:
    monkeypatch.setattr(base.dist, "get_world_size", lambda: size)
    monkeypatch.setattr(base.dist, "get_rank", lambda: rank)
    assert Hook(SimpleNamespace()).is_main_process is main

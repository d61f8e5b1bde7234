"""What a hook is told, whatever ppdet's Trainer writes into its status."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from slim_det.hooks import base
from slim_det.hooks.base import Hook


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

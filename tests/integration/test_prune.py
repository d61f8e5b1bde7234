"""`slim-det prune` in processes that are killed: weights and plan are complete, or not there."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from slim_det.compress.prune.plan import Plan
from slim_det.training import session
from slim_det.training.checkpoint import stored_step
from slim_det.training.config import load_config
from tests.commands import files_below
from tests.forks import Forks
from tests.support import restored_config

FILES = ["model_pruned.pdparams", "model_pruned.plan.json"]

SETTINGS: dict[str, Any] = {
    "criterion": "elimination",
    "pruned_params": ["neck.yolo_block.2.tip", "neck.yolo_block.2.conv_module.conv0"],
    "pruned_ratios": [0.5, 0.5],
    "repair": "least_squares",
    "calibration": {"images": 3, "positions": 300},
}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands put their temporary folders."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory, scratch: Path) -> Iterator[Forks]:
    """A process with paddle imported, whose forks run the commands."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(scratch))
        started = Forks(tmp_path_factory.mktemp("forks"))
    yield started
    started.close()


@pytest.fixture
def command(tiny: Path, unpruned: Path, tmp_path: Path) -> tuple[Any, ...]:
    slim = tmp_path / "slim.yml"
    slim.write_text(yaml.safe_dump({"slim": "Pruner", "Pruner": SETTINGS}))
    return (
        *("prune", "-c", tiny, "-o", f"weights={unpruned}", "--slim_config", slim),
        *("--save_dir", tmp_path / "saved"),
    )


def visible(folder: Path) -> list[str]:
    """Names of what is no temporary file."""
    return sorted(path.name for path in folder.glob("*") if not path.name.startswith("."))


def check_complete(config: Path, stem: Path) -> None:
    """The weights are those of the plan: every tensor fits."""
    plan = stored_step(str(stem), Plan)
    assert plan is not None and plan.repair is not None
    with restored_config():
        model = session.model_with_weights(load_config(config), str(stem))
    shapes = {name: tuple(value.shape) for name, value in model.named_parameters()}
    assert shapes == plan.tensors | plan.shapes_after()


@pytest.mark.slow
def test_killed_while_it_works(
    forks: Forks, scratch: Path, tiny: Path, command: tuple[Any, ...], tmp_path: Path
) -> None:
    """With images on disk nothing is written; the next run is complete and leaves no files."""
    saved = tmp_path / "saved" / "tiny"

    def has_images() -> bool:
        return any(scratch.glob("slim_det_images_*/*/*.bin"))

    assert forks.run(*command, until=has_images) == -signal.SIGKILL, forks.error()
    assert visible(saved) == []
    before = files_below(scratch)
    assert forks.run(*command, "--json", tmp_path / "figures.json") == 0, forks.error()
    assert files_below(scratch) == before
    assert visible(saved) == FILES
    check_complete(tiny, saved / "model_pruned")
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["repair"]["images"] == 3


def after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


@pytest.mark.slow
def test_killed_ten_times(
    forks: Forks, tiny: Path, command: tuple[Any, ...], tmp_path: Path
) -> None:
    """Over older results: those are complete, or the new ones; also while files are written."""
    saved = tmp_path / "saved" / "tiny"
    begin = time.monotonic()
    assert forks.run(*command) == 0, forks.error()
    lasts = time.monotonic() - begin
    times = random.Random(0)

    def writes() -> bool:
        return any(path.name.startswith(".") for path in saved.iterdir())

    for number in range(10):
        until = writes if number % 2 else after(times.uniform(0.3, 1.0) * lasts)
        code = forks.run(*command, until=until)
        assert code in (0, -signal.SIGKILL), forks.error()
        assert visible(saved) == FILES
        check_complete(tiny, saved / "model_pruned")

"""Fixtures of several files that run the real commands."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.forks import Forks
from tests.trained import Detector, thin_detector


@pytest.fixture(scope="module")
def detector(
    tmp_path_factory: pytest.TempPathFactory, tiny: Path, shapes: Path, ppdet_registered: None
) -> Detector:
    """A detector of 18 head groups on six images; no test changes it."""
    return thin_detector(tmp_path_factory.mktemp("thin") / "detector", tiny, shapes)


@pytest.fixture(scope="module")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    """A process with paddle imported, whose forks run the commands."""
    started = Forks(tmp_path_factory.mktemp("forks"))
    yield started
    started.close()


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Relative names are below this folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path

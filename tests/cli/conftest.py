"""Fixture for commands that must be refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.commands import Outcome, files_below


@pytest.fixture
def refused(
    cli: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Run a command that must exit with 2, print one line and write nothing; returns the line."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: Any) -> str:
        before = files_below(tmp_path)
        outcome = cli(*arguments)
        assert files_below(tmp_path) == before, outcome.err
        assert outcome.code == 2, outcome.err + outcome.out
        lines = outcome.err.splitlines()
        assert len(lines) == 1, outcome.err
        assert "Traceback" not in outcome.out
        return lines[0]

    return run

"""Every `slim-det` command in a document is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from slim_det.cli import _parse
from tests.support import ROOT

DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("configs/*/README.md")],
    key=lambda path: path.as_posix(),
)
_COMMAND = re.compile(r"^ *(?:\$ )?(?:[A-Z_]+=\S* )*slim-det (.*)$", re.MULTILINE)
_FILE = re.compile(r"(?:configs|docs|tools|benchmarks|slim_det|tests)/[\w./-]*\w\.\w+")


def commands(path: Path) -> list[list[str]]:
    """The arguments of every command that stands on a line of its own."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = (
        line.split("  #")[0].split(" | ")[0].split(" && ")[0] for line in _COMMAND.findall(text)
    )
    return [shlex.split(line) for line in lines]


def test_there_are_commands() -> None:
    assert len(commands(ROOT / "README.md")) > 5


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_can_be_typed(path: Path) -> None:
    for arguments in commands(path):
        _, parsed = _parse(arguments)
        assert parsed.command == arguments[0]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(path: Path) -> None:
    named = _FILE.findall(path.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []

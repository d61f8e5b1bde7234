"""Every `slim-det` command in a document is one that the command line takes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from slim_det.cli import COMMANDS, _parse
from tests.support import ROOT

DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("configs/*/README.md")],
    key=lambda path: path.as_posix(),
)
_COMMAND = re.compile(r"^ *(?:\$ )?(?:[A-Z_]+=\S* )*slim-det (.*)$", re.MULTILINE)
_SCRIPT = re.compile(r"main\(\[\"(\w+)\"")
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


def test_every_command_is_described() -> None:
    text = " ".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    assert [name for name in COMMANDS if f"slim-det {name}" not in text] == []


def test_scripts_run_commands() -> None:
    """Every command has a script in `tools/`, except for two."""
    scripts = {path: _SCRIPT.findall(path.read_text()) for path in ROOT.glob("tools/*.py")}
    assert [path.name for path, names in scripts.items() if len(names) != 1] == []
    run = {names[0] for names in scripts.values()}
    assert run <= set(COMMANDS)
    assert set(COMMANDS) - run == {"inspect", "demo"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_can_be_typed(path: Path) -> None:
    for arguments in commands(path):
        _, parsed = _parse(arguments)
        assert parsed.command == arguments[0]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_files_that_are_named_exist(path: Path) -> None:
    named = _FILE.findall(path.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []

"""The command line itself: help, version, what a process prints, and the scripts in tools/."""

from __future__ import annotations

import ast
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from slim_det.cli import COMMANDS
from slim_det.version import __version__
from tests.commands import ROOT, Outcome, command, process_environment

TOOLS = sorted((ROOT / "tools").glob("*.py"))

# Answers every `--help` in one process, then says which heavy packages were imported.
EVERY_HELP = """
import sys
from slim_det.cli import COMMANDS, main
for arguments in [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]:
    try:
        main(arguments)
    except SystemExit as done:
        assert not done.code, arguments
print([name for name in ("paddle", "ppdet", "cv2", "numpy", "yaml") if name in sys.modules])
"""


def test_help_and_version_import_nothing_heavy(tmp_path: Path) -> None:
    """So they answer at once: in under two seconds of processor time for all of them."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", EVERY_HELP],
        cwd=tmp_path,
        env=process_environment(),
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert ast.literal_eval(lines[-1]) == []
    assert f"slim-det {__version__}" in lines
    assert done.stdout.count("usage: slim-det") == len(COMMANDS) + 1
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0


@pytest.mark.parametrize("tool", TOOLS, ids=lambda path: path.stem)
def test_tool_answers_help(tool: Path, tmp_path: Path) -> None:
    """From any folder, with nothing installed."""
    environment = process_environment()
    environment.pop("PYTHONPATH")
    done = subprocess.run(
        [sys.executable, str(tool), "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout
    assert ("--config" if tool.stem != "widerface" else "--ground_truth") in done.stdout
    assert done.stderr == ""


def test_tools_have_the_names_of_paddledetection() -> None:
    assert {"train", "eval", "infer", "export_model"} <= {tool.stem for tool in TOOLS}


def test_no_command_prints_help(tmp_path: Path) -> None:
    run = command(cwd=tmp_path)
    assert run.code == 2 and "COMMAND" in run.out and run.err == ""


def test_unknown_command_names_the_known(cli: Callable[..., Outcome]) -> None:
    run = cli("trian")
    assert run.code == 2 and "invalid choice: 'trian'" in run.err and "'train'" in run.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["-o", "weights={cut}"], "cannot be read"),
        (["--slim_config", "{slim}"], "'yolo_head.yolo_output.0' cannot be cut"),
        (["--artifact", "nothing"], "has no model.pdmodel"),
    ],
)
def test_error_is_one_line_of_a_real_process(
    tiny: Path, unpruned: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    """Nothing that paddle or ppdet prints gets between."""
    cut = tmp_path / "cut.pdparams"
    cut.write_bytes(Path(f"{unpruned}.pdparams").read_bytes()[:5000])
    slim = tmp_path / "slim.yml"
    slim.write_text(
        "slim: Pruner\nPruner: {pruned_params: yolo_head.yolo_output.0, pruned_ratios: 0.5}\n"
    )
    given = [text.format(cut=cut, slim=slim) for text in arguments]
    if "--slim_config" in given:
        given += ["-o", f"weights={unpruned}"]
    run = command("eval", "-c", tiny, *given, cwd=tmp_path)
    assert run.code == 2
    lines = run.err.splitlines()
    assert len(lines) == 1, run.err
    assert lines[0].startswith("slim-det eval: error: ") and said in lines[0]


def test_unforeseen_error_is_one_line(
    cli: Callable[..., Outcome], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 1, and how to see more; with the variable set, the traceback."""
    import slim_det.cli.inspect as module

    def fail(args: object) -> int:
        raise RuntimeError("first\nsecond " + "x" * 400)

    monkeypatch.setattr(module, "run", fail)
    run = cli("inspect", "-c", tiny)
    assert run.code == 1 and len(run.err.splitlines()) == 1
    assert "unexpected RuntimeError: first second x" in run.err and len(run.err) < 420
    assert "SLIM_DET_DEBUG=1" in run.err
    monkeypatch.setenv("SLIM_DET_DEBUG", "1")
    assert "Traceback" in cli("inspect", "-c", tiny).err


def test_interrupted(
    cli: Callable[..., Outcome], tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import slim_det.cli.inspect as module

    def interrupt(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run", interrupt)
    run = cli("inspect", "-c", tiny)
    assert run.code == 130 and run.err == "slim-det inspect: interrupted\n"

"""Processes of commands: forks end with them, and Paddle is there or one line says what to do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.commands import process_environment
from tests.forks import is_running
from tests.support import ROOT

SCRIPT = """
import os, sys, time
from slim_det.core.process import prepare_process
if sys.argv[1] == "prepared":
    prepare_process(with_paddle=False)
pid = os.fork()
if pid:
    print(pid, flush=True)
time.sleep(60)
"""


def forked_by_a_killed_process(how: str) -> int:
    """The id of a process whose parent was killed."""
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, how],
        env=process_environment(),
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        time.sleep(0.2)  # the fork has run what it runs first
        assert is_running(pid)
        parent.kill()
        parent.wait()
    return pid


def test_a_fork_ends_when_its_command_is_killed() -> None:
    pid = forked_by_a_killed_process("prepared")
    deadline = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_without_it_a_fork_stays() -> None:
    pid = forked_by_a_killed_process("plain")
    time.sleep(1.0)
    assert is_running(pid)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("content", "gpu", "said"),
    [
        (None, False, "paddle is not installed; install paddlepaddle >=3.0,<4 (pip install "),
        (None, True, "paddle is not installed; install paddlepaddle-gpu >=3.0,<4\n"),
        ("import nowhere", False, "paddle lacks 'nowhere'; install paddlepaddle >=3.0,<4"),
        ("raise OSError('libcudart.so:\\n gone')", True, "imported (libcudart.so: gone); install"),
        ("__version__ = '2.6.2'", False, "paddle 2.6.2 is too old; install paddlepaddle >=3.0"),
    ],
)
@pytest.mark.parametrize("program", ["slim_det.cli", "slim_det"])
def test_paddle_that_cannot_be_used(
    tmp_path: Path, content: str | None, gpu: bool, said: str, program: str
) -> None:
    """One line that says which package to install; with a driver of NVIDIA, that for GPUs."""
    if content is None:
        content = "raise ModuleNotFoundError(name='paddle')"
    (tmp_path / "paddle.py").write_text(content)
    (tmp_path / "script.py").write_text("")
    if gpu:
        (tmp_path / "nvidia-smi").write_text("")
        (tmp_path / "nvidia-smi").chmod(0o755)
    arguments = ["script.py"] if program == "slim_det" else ["inspect", "-c", "x.yml"]
    run = subprocess.run(
        [sys.executable, "-m", program, *arguments],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "PATH": str(tmp_path)},
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert said in run.stderr and run.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("ppdet", "ppdet is not installed; run 'pip install "),
        (
            "sklearn.cluster",
            "'sklearn' is not installed: ppdet imports it; run 'pip install scikit-",
        ),
        ("nowhere", "'nowhere' is not installed: ppdet imports it; run 'pip install nowhere'"),
    ],
)
def test_package_that_ppdet_lacks(tmp_path: Path, missing: str, said: str) -> None:
    (tmp_path / "ppdet").mkdir()
    content = f"raise ModuleNotFoundError(name={missing!r})"
    (tmp_path / "ppdet" / "__init__.py").write_text(content)
    run = subprocess.run(
        [sys.executable, "-m", "slim_det.cli", "inspect", "-c", "x.yml"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert said in run.stderr and run.stderr.count("\n") == 1


def test_package_that_a_script_lacks(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import nowhere.inside\n")
    run = subprocess.run(
        [sys.executable, "-m", "slim_det", "train.py"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert run.returncode == 2, run.stderr
    assert (
        "'nowhere' is not installed: train.py imports it; run 'pip install nowhere'" in run.stderr
    )
    assert run.stderr.count("\n") == 1

"""Processes that are forked from a command end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from tests.commands import process_environment
from tests.forks import is_running

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

"""Commands in processes of their own that can be killed, and that start in no time."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.commands import process_environment


class Forks:
    """Commands in processes of their own that need not import anything first.

    Args:
        folder: Where they run, and where their streams go.
    """

    SCRIPT = """
import json, os, sys
from slim_det.cli import main
from slim_det.core.process import prepare_process
prepare_process()
print("ready", flush=True)
for line in sys.stdin:
    pid = os.fork()
    if not pid:
        for stream in (1, 2):
            os.dup2(os.open(f"stream{stream}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
        code = main(json.loads(line))
        sys.stdout.flush()
        os._exit(code)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.SCRIPT],
            cwd=folder,
            env=process_environment(OMP_NUM_THREADS="1"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._line() == "ready"

    def run(self, *arguments: Any, until: Callable[[], bool] | None = None) -> int:
        """Run a command to its end, or kill it as soon as ``until`` says so.

        Returns:
            Its exit code; -9 if it was killed.
        """
        self._process.stdin.write(json.dumps([str(a) for a in arguments]) + "\n")
        self._process.stdin.flush()
        pid = int(self._line())
        while until and is_running(pid):
            if until():
                os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.005)
        return int(self._line())

    def error(self) -> str:
        """What the last command wrote to stderr."""
        return (self.folder / "stream2").read_text()

    def left(self, within_s: float = 5.0) -> list[int]:
        """Processes that the commands have started and that have not ended in this time."""
        end = time.monotonic() + within_s
        while (found := self._others()) and time.monotonic() < end:
            time.sleep(0.05)
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _others(self) -> list[int]:
        """Running processes in the folder of the commands, by id."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.path.samefile(process / "cwd", self.folder):
                    found.append(int(process.name))
        return [pid for pid in found if pid != self._process.pid and is_running(pid)]

    def _line(self) -> str:
        return self._process.stdout.readline().strip()


def is_running(pid: int) -> bool:
    """Whether a process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False

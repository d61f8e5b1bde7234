"""Writes a detector for Paddle-Lite: `slim-det export --lite arm`, unless --lite says otherwise."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from slim_det.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    if not any(argument.split("=")[0] == "--lite" for argument in arguments):
        arguments = [*arguments, "--lite", "arm"]
    sys.exit(main(["export", *arguments]))

"""Measures a latency table of convolutions: the same as `slim-det profile`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from slim_det.cli import main

if __name__ == "__main__":
    sys.exit(main(["profile", *sys.argv[1:]]))

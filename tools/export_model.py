"""PaddleDetection's `tools/export_model.py`, with slim_det: the same as `slim-det export`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from slim_det.cli import main

if __name__ == "__main__":
    sys.exit(main(["export", *sys.argv[1:]]))

"""The same as `slim-det check`, from a checkout."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from slim_det.cli import main

if __name__ == "__main__":
    sys.exit(main(["check", *sys.argv[1:]]))

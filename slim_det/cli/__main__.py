"""`python -m slim_det.cli COMMAND`: the same as `slim-det COMMAND`."""

import sys

from slim_det.cli import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m slim_det SCRIPT ARGS`: runs a PaddleDetection script with slim_det registered."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from slim_det.cli.process import log_to_stdout, report_unexpected, set_environment
from slim_det.errors import ConfigError, SlimDetError
from slim_det.safe_yaml import read_tree

USAGE = "usage: python -m slim_det PATH/tools/train.py -c CONFIG [--slim_config SLIM] ..."


def main(argv: list[str]) -> int:
    """Run a script as if it had been started by itself.

    Args:
        argv: The script's path and its arguments.

    Returns:
        Exit code, as for `slim-det`.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    script = Path(argv[0])
    set_environment()
    log_to_stdout()
    try:
        if not script.is_file():
            raise ConfigError(f"script '{script}' does not exist; {USAGE}")
        _check_yaml(argv[1:])
        sys.argv = [str(script), *argv[1:]]
        sys.path[0] = str(script.resolve().parent)
        runpy.run_path(str(script), run_name="__main__")
    except SlimDetError as error:
        print(f"slim_det: error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        return report_unexpected(f"slim_det {script.name}", error)
    return 0


def _check_yaml(arguments: list[str]) -> None:
    """Refuse unsafe files before the script's own loader, which runs any code, sees them."""
    flags = ("-c", "--config", "--slim_config")
    for flag, value in zip(arguments, arguments[1:]):
        if flag in flags:
            read_tree(value, check_only=True)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if equals and flag in flags:
            read_tree(value, check_only=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

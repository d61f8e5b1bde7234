"""`python -m slim_det SCRIPT ARGS`: runs a PaddleDetection script with slim_det registered."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

from slim_det.core.errors import ConfigError, SlimDetError, one_line
from slim_det.core.process import (
    import_paddle,
    missing_package,
    prepare_process,
    report_unexpected,
)
from slim_det.core.safe_yaml import read_tree
from slim_det.core.script_overrides import script_overrides

USAGE = (
    "usage: python -m slim_det SCRIPT.py ARGUMENTS, such as PATH/tools/train.py -c CONFIG "
    "[--slim_config SLIM] ..."
)


def main(argv: list[str]) -> int:
    """Run a script as if it had been started directly.

    Args:
        argv: Path of the script and its arguments.

    Returns:
        Exit code, as for `slim-det`.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE, file=sys.stdout if argv else sys.stderr)
        return 0 if argv else 2
    script = Path(argv[0])
    prepare_process(with_paddle=False)
    try:
        if not script.is_file():
            raise ConfigError(f"script '{script}' does not exist; {USAGE}")
        _check_arguments(argv[1:])
        sys.argv = [str(script), *argv[1:]]
        sys.path[0] = str(script.resolve().parent)
        import_paddle()
        runpy.run_path(str(script), run_name="__main__")
    except SlimDetError as error:
        print(f"slim_det: error: {one_line(error)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        what = missing_package(error, f"{script.name} imports it")
        print(f"slim_det: error: {one_line(what)}", file=sys.stderr)
        return 2
    except Exception as error:
        return report_unexpected(f"slim_det {script.name}", error)
    return 0


def _check_arguments(arguments: list[str]) -> None:
    """Check the script's arguments before it runs.

    Unsafe files are rejected here, because the script's own loader would execute their code;
    ``-o`` is stored, because the script would let its slim file override it.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-c", "--config")
    parser.add_argument("--slim_config")
    parser.add_argument("-o", "--opt", nargs="*", default=[])
    known, _ = parser.parse_known_args(arguments)
    for path in filter(None, (known.config, known.slim_config)):
        read_tree(path, check_only=True)
    script_overrides[:] = known.opt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

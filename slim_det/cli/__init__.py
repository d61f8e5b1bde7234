"""The command line `slim-det COMMAND`. Heavy modules are imported only when a command runs."""

from __future__ import annotations

import argparse
import importlib
import sys

from slim_det.cli.common import check_json_target
from slim_det.core.errors import SlimDetError
from slim_det.core.process import prepare_process, report_unexpected
from slim_det.version import __version__

COMMANDS = {
    "train": "train a detector, with the compression that --slim_config describes",
    "eval": "measure AP of a checkpoint or an exported model",
    "infer": "draw detected boxes on images",
    "export": "export a model for Paddle Inference, and check it",
    "quantize": "make an int8 detector from trained float weights and a few images",
    "inspect": "list what can be pruned and what it would save",
    "verify": "check that a pruned or exported model matches the model it came from",
    "sensitivity": "measure how much AP is lost when each layer is pruned at each ratio",
    "ratios": "choose the pruning ratio of each layer to meet a budget",
    "profile": "measure a latency table of convolutions, and check it on complete models",
    "widerface": "measure AP on WIDER FACE from files of detections",
    "demo": "run the complete workflow on a generated data set",
}

WITHOUT_PADDLE = frozenset({"widerface"})
"""Commands that do not need Paddle and therefore start at once."""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments without the program name; by default those of the process.

    Returns:
        Exit code: 0 for success, 1 if a check failed or an unexpected error occurred, 2 for an
        error that the user can fix, reported in one line.
    """
    parser, arguments = _parse(sys.argv[1:] if argv is None else argv)
    if arguments.command is None:
        parser.print_help()
        return 2
    try:
        check_json_target(arguments)
        prepare_process(arguments.command not in WITHOUT_PADDLE)
        command = importlib.import_module(f"slim_det.cli.{arguments.command}")
        return int(command.run(arguments))
    except SlimDetError as error:
        print(f"slim-det {arguments.command}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"slim-det {arguments.command}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        return report_unexpected(f"slim-det {arguments.command}", error)


def _parse(argv: list[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        prog="slim-det", description="Compression of PaddleDetection's detectors."
    )
    parser.add_argument("--version", action="version", version=f"slim-det {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        importlib.import_module(f"slim_det.cli.{name}").add_arguments(sub)
    return parser, parser.parse_args(argv)

"""The command line `slim-det COMMAND`. Heavy modules are only imported when a command runs."""

from __future__ import annotations

import argparse
import importlib
import sys

from slim_det.cli.common import check_json_target
from slim_det.core.errors import SlimDetError, one_line
from slim_det.core.process import prepare_process, report_unexpected
from slim_det.version import __version__

COMMANDS = {
    "check": "check the annotations and images of a configuration",
    "train": "train a detector, compressed as --slim_config says",
    "eval": "measure the AP of a checkpoint or an exported model",
    "infer": "draw detected boxes on images",
    "export": "export a model for Paddle Inference and check the exported file",
    "prune": "cut a trained detector and repair it from a few images, without training",
    "quantize": "convert a trained float detector to int8 with a few images",
    "inspect": "list what can be pruned and how much that saves",
    "verify": "check that a pruned or exported model matches the model it came from",
    "sensitivity": "measure how much AP is lost when each layer is pruned at each ratio",
    "ratios": "choose the pruning ratio of each layer to meet a budget",
    "profile": "measure the latency of convolutions to predict that of pruned models",
    "widerface": "measure the WIDER FACE AP of detection files",
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
        error that the user can fix (reported in one line), 130 if interrupted.
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
        print(f"slim-det {arguments.command}: error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"slim-det {arguments.command}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        return report_unexpected(f"slim-det {arguments.command}", error)


def _parse(argv: list[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(
        prog="slim-det", description="Compress detectors of PaddleDetection and verify the result."
    )
    parser.add_argument("--version", action="version", version=f"slim-det {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        importlib.import_module(f"slim_det.cli.{name}").add_arguments(sub)
    return parser, parser.parse_args(argv)

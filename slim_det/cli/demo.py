"""`slim-det demo`: the whole chain on a data set that is drawn on the spot."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--output_dir", default="output/demo", metavar="DIR")


def run(args: argparse.Namespace) -> int:
    """Run it."""
    return 1

"""Arguments and helper functions that several commands share."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING, Any

from slim_det.core.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from slim_det.training.config import SlimConfig


def add_config_arguments(
    parser: argparse.ArgumentParser, required: bool = True, slim_config: bool = True
) -> None:
    """``-c``, ``-o`` and ``--slim_config``, as in PaddleDetection."""
    parser.add_argument(
        "-c", "--config", required=required, metavar="FILE", help="PaddleDetection configuration"
    )
    parser.add_argument(
        "-o", "--opt", nargs="*", default=[], metavar="KEY=VALUE",
        help="override settings of the configuration, e.g. weights=PATH",
    )  # fmt: skip
    if slim_config:
        parser.add_argument("--slim_config", metavar="FILE", help="slim file: how to compress")


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """``--json FILE``."""
    parser.add_argument("--json", metavar="FILE", help="also write the results to this file")


def add_artifact_arguments(parser: argparse.ArgumentParser) -> None:
    """``--artifact DIR`` and ``--threads N``."""
    parser.add_argument("--artifact", metavar="DIR", help="run this exported model instead")
    parser.add_argument(
        "--threads", type=positive, metavar="N",
        help="CPU threads for the exported model (default: all)",
    )  # fmt: skip


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """``--infer_img`` and ``--infer_dir``."""
    parser.add_argument("--infer_img", metavar="FILE", help="one image (overrides --infer_dir)")
    parser.add_argument("--infer_dir", metavar="DIR", help="all images in a folder")


def add_save_dir_argument(parser: argparse.ArgumentParser, checkpoint: str) -> None:
    """``--save_dir DIR`` of a command that saves weights under a fixed name."""
    parser.add_argument(
        "--save_dir", metavar="DIR",
        help=f"the weights go to DIR/<configuration's name>/{checkpoint}.pdparams (default: "
        "save_dir of the configuration)",
    )  # fmt: skip


def calibration_flags(args: argparse.Namespace) -> dict[str, Any]:
    """What ``--images`` and ``--num_images`` set of `Calibration`, without what is not given."""
    given = {"folder": args.images, "images": args.num_images}
    return {key: value for key, value in given.items() if value is not None}


def add_image_size_argument(parser: argparse.ArgumentParser) -> None:
    """``--image_size N``."""
    parser.add_argument(
        "--image_size", type=positive, metavar="N", help="side of the square input in pixels"
    )


def add_export_arguments(parser: argparse.ArgumentParser) -> None:
    """``--output_dir``, and how an int8 artifact is compared with its model."""
    parser.add_argument(
        "--output_dir", default="output_inference", metavar="DIR",
        help="the artifact goes to DIR/<configuration's name>",
    )  # fmt: skip
    parser.add_argument(
        "--max_gap", type=points, default=0.5, metavar="P",
        help="largest AP difference in points between an int8 artifact and its model (default 0.5)",
    )  # fmt: skip
    parser.add_argument(
        "--no_eval", action="store_true", help="do not measure AP of an int8 model on EvalDataset"
    )


def read_configs(args: argparse.Namespace) -> tuple[Any, SlimConfig | None]:
    """Read ``-c``, ``--slim_config`` and ``-o`` (which overrides both), and select the device."""
    from slim_det.training import session
    from slim_det.training.config import apply_overrides, load_config

    cfg = load_config(args.config, args.opt)
    slim = None
    if args.slim_config:
        slim = session.read_slim(args.slim_config)
        apply_overrides(args.opt)
    session.set_device(cfg)
    return cfg, slim


def check_json_target(args: argparse.Namespace) -> None:
    """Check in advance that the ``--json`` file can be written."""
    target = getattr(args, "json", None)
    if target and not os.access(os.path.dirname(os.path.abspath(target)), os.W_OK):
        raise ConfigError(f"--json '{target}': expected a file in a writable folder")


def save_json(args: argparse.Namespace, figures: dict[str, Any]) -> None:
    """Write the results to the ``--json`` file, if one is given."""
    if args.json:
        from slim_det.core.files import write_json

        write_json(args.json, figures)


def print_table(table: Table, width: int = 200) -> None:
    """Print a table as wide as the terminal; ``width`` if the output is not a terminal."""
    from rich.console import Console

    console = Console()
    (console if console.is_terminal else Console(width=width)).print(table)


def points(text: str) -> float:
    """Parse points of a metric, 0 to 100, for argparse."""
    number = float(text)
    if not 0 <= number <= 100:
        raise ValueError(text)
    return number


def positive(text: str) -> int:
    """Parse an integer of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number

"""`slim-det export --lite`: adds files for Paddle-Lite to an artifact."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from slim_det.core.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    import paddle


def add_lite_arguments(parser: argparse.ArgumentParser) -> None:
    """``--lite``, ``--fp16`` and ``--paddle_lite_opt``."""
    parser.add_argument(
        "--lite", choices=("arm", "x86", "both"), help="also write files for Paddle-Lite"
    )
    parser.add_argument(
        "--fp16", action="store_true", help="half precision in Paddle-Lite on ARM (float models)"
    )
    parser.add_argument(
        "--paddle_lite_opt",
        metavar="PATH",
        help="Paddle-Lite's opt, or a Python that has paddlelite (default: this one)",
    )


def check_lite_arguments(args: argparse.Namespace, precision: str) -> None:
    """Check the Paddle-Lite flags before a model of this precision is exported.

    Raises:
        ConfigError: Flags contradict each other or the model.
        ExportError: The given converter does not exist.
    """
    from slim_det.deploy.lite.convert import find_converter

    if not args.lite:
        for flag, value in (("--fp16", args.fp16), ("--paddle_lite_opt", args.paddle_lite_opt)):
            if value:
                raise ConfigError(f"{flag} is for Paddle-Lite; add --lite arm, x86 or both")
        return
    if args.fp16 and precision != "float32":
        raise ConfigError("--fp16: the model is quantized to int8; leave --fp16 out")
    if args.fp16 and args.lite == "x86":
        raise ConfigError("--fp16: Paddle-Lite has half precision on ARM only; use --lite arm")
    find_converter(args.paddle_lite_opt)


def export_lite(
    args: argparse.Namespace, model: paddle.nn.Layer, cfg: Any, artifact_dir: str | Path
) -> dict[str, Any] | None:
    """Write ``<artifact_dir>/lite`` and return its manifest entry; None without ``--lite``."""
    from slim_det.deploy.lite.convert import TARGETS, LiteRequest, find_converter, write_lite
    from slim_det.deploy.lite.forms import lite_form

    if not args.lite:
        return None
    targets = TARGETS if args.lite == "both" else (args.lite,)
    request = LiteRequest(targets, args.fp16, find_converter(args.paddle_lite_opt))
    form, write_program = lite_form(model, cfg, artifact_dir)
    return write_lite(artifact_dir, write_program, form, request)

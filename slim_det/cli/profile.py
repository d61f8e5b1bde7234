"""`slim-det profile`: measures a latency table of convolutions and checks its predictions."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slim_det.cli import common
from slim_det.report.tables import text_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slim_det.planning.profile.check import CheckRow
    from slim_det.planning.profile.table import LatencyTable
    from slim_det.training.config import SlimConfig


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    common.add_config_arguments(parser)
    parser.add_argument("--output", required=True, metavar="FILE", help="file for the table (JSON)")
    parser.add_argument(
        "--threads", type=common.positive, default=1, metavar="N", help="CPU threads (default 1)"
    )
    parser.add_argument(
        "--repeats", type=common.positive, default=20, metavar="N",
        help="timed runs of each program (default 20)",
    )  # fmt: skip
    parser.add_argument(
        "--widths", metavar="SHARES",
        help="widths to measure, as shares of a layer's width (default 0.1,0.25,0.5,0.75,1.0)",
    )  # fmt: skip
    parser.add_argument(
        "--check", action="store_true",
        help="compare with complete models: unpruned, and pruned as --slim_config says (default: "
        "by the presets sensity and r578)",
    )  # fmt: skip
    common.add_json_argument(parser)


def run(args: argparse.Namespace) -> int:
    """Measure, write the table, check it; exit code 1 if a prediction is off by more than 15 %."""
    from slim_det.core.files import require_writable
    from slim_det.detectors.image_size import image_size_hw
    from slim_det.planning.profile.grid import DEFAULT_WIDTHS, check_widths
    from slim_det.planning.profile.model_latency import model_to_profile, profile_model

    shares = check_widths(args.widths) if args.widths else DEFAULT_WIDTHS
    _check_flags(args)
    cfg, slim = common.read_configs(args)
    image_size_hw(cfg)
    weights = cfg.get("weights") if _weights_are_given(args) else None
    model = model_to_profile(cfg, weights)
    require_writable(Path(args.output).parent)
    table = profile_model(model, cfg, shares, args.threads, args.repeats)
    table.write(args.output)
    _print_table(table, args.output)
    rows = _check(args, cfg, slim, weights, table) if args.check else []
    figures = {
        "table": args.output,
        "convs": len(table.entries),
        "other_ms": table.other_ms,
        "weights": weights,
        "check": [row.as_dict() for row in rows],
        "passed": all(row.passed for row in rows) if rows else None,
    }
    common.save_json(args, figures)
    return 0 if all(row.passed for row in rows) else 1


def _check_flags(args: argparse.Namespace) -> None:
    from slim_det.core.errors import ConfigError

    if Path(args.output).is_dir():
        raise ConfigError(f"--output '{args.output}' is a folder; expected a file, latency.json")
    if args.slim_config and not args.check:
        raise ConfigError("--slim_config is only used by --check; add --check")


def _weights_are_given(args: argparse.Namespace) -> bool:
    """Whether to load weights: those that the configuration itself names need not exist here."""
    return any(option.startswith("weights=") for option in args.opt)


def _check(
    args: argparse.Namespace,
    cfg: Any,
    slim: SlimConfig | None,
    weights: str | None,
    table: LatencyTable,
) -> list[CheckRow]:
    from slim_det.planning.profile.check import compare
    from slim_det.planning.profile.model_latency import models_to_check

    with tempfile.TemporaryDirectory(prefix="slim_det_profile_") as folder:
        models = models_to_check(cfg, weights, slim, Path(folder))
        rows = compare(table, models, max(20, args.repeats))
    _print_check(rows)
    if weights is None:
        print("weights are random: the time of NMS (in other_ms) differs from trained weights")
    return rows


def _print_table(table: LatencyTable, path: str) -> None:
    height, width = table.image_size_hw or (0, 0)
    origin = table.origin
    print(
        f"{path}: {len(table.entries)} convolutions of a model at {height}x{width}, "
        f"{table.other_ms or 0.0:.2f} ms for the rest; {origin.cpu}, {origin.threads} thread(s), "
        f"Paddle {origin.paddle}"
    )


def _print_check(rows: Sequence[CheckRow]) -> None:
    columns = ("model", "convs ms", "predicted ms", "measured ms", "p10 - p90", "error")
    cells = [
        (
            row.name,
            f"{row.convs_ms:.2f}",
            f"{row.predicted_ms:.2f}",
            f"{row.measured_ms:.2f}",
            f"{row.p10_ms:.2f} - {row.p90_ms:.2f}",
            f"{row.error:+.1%}{'' if row.passed else '  FAIL'}",
        )
        for row in rows
    ]
    common.print_table(text_table(columns, cells), 120)

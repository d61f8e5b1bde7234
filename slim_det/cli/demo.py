"""`slim-det demo`: the complete workflow on a generated data set."""

from __future__ import annotations

import argparse
from typing import Any

from slim_det.cli import common
from slim_det.report.tables import text_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "--output_dir", default="output/demo", metavar="DIR",
        help="checkpoints, exported models and results (default output/demo)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Run the workflow and print one table."""
    from slim_det.core.files import require_writable
    from slim_det.demo.chain import run_demo

    figures = run_demo(require_writable(args.output_dir))
    _print(figures)
    print(f"picture: {args.output_dir}/demo.png; {figures['seconds'] / 60:.1f} minutes in all")
    return 0


def _print(figures: dict[str, Any]) -> None:
    columns = ("model", "MACs", "parameters", "file MB", "ms per image", "speed", "AP", "AP50")
    rows = [
        (
            row["name"],
            str(row["macs"]),
            str(row["params"]),
            f"{row['size_mb']:.2f}",
            f"{row['latency_ms']:.2f}",
            f"{row['speedup']:.2f}x",
            f"{row['ap']:.3f}",
            f"{row['ap50']:.3f}",
        )
        for row in figures["rows"]
    ]
    common.print_table(text_table(columns, rows), 120)
    pruned = figures["cut_only"]
    print(f"pruned, before fine-tuning: AP {pruned['ap']:.3f}, AP50 {pruned['ap50']:.3f}")

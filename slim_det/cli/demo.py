"""`slim-det demo`: the complete workflow on a generated data set."""

from __future__ import annotations

import argparse
from typing import Any

from slim_det.cli.common import table_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("--output_dir", default="output/demo", metavar="DIR")


def run(args: argparse.Namespace) -> int:
    """Run the workflow and print one table."""
    from slim_det.core.files import require_writable
    from slim_det.demo.chain import run_demo

    figures = run_demo(require_writable(args.output_dir))
    _print(figures)
    print(f"picture: {args.output_dir}/demo.png; {figures['seconds'] / 60:.1f} minutes in all")
    return 0


def _print(figures: dict[str, Any]) -> None:
    from rich.table import Table

    columns = ("model", "MACs", "parameters", "file MB", "latency ms", "speed", "AP", "AP50")
    table = Table(*columns, box=None)
    for row in figures["rows"]:
        table.add_row(
            row["name"],
            str(row["macs"]),
            str(row["params"]),
            f"{row['size_mb']:.2f}",
            f"{row['latency_ms']:.2f}",
            f"{row['speedup']:.2f}x",
            f"{row['ap']:.3f}",
            f"{row['ap50']:.3f}",
        )
    console = table_console(120)
    console.print(table)
    cut_only = figures["cut_only"]
    print(f"pruned, before fine-tuning: AP {cut_only['ap']:.3f}, "
          f"AP50 {cut_only['ap50']:.3f}")  # fmt: skip

"""Tries PaddleDetection's own configurations, unmodified, with every command of slim_det.

    python tools/compatibility PADDLEDETECTION [--work DIR] [--only TEXT ...] [--table FILE]

Each family is inspected, pruned and trained for two steps, verified, trained for two steps in
simulated int8, quantized after training, exported, and its file evaluated and compared, on a few
drawn images. Each slim file is given to PaddleDetection's script for two steps. What passed in DIR
is not run again.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

from data import draw_data_sets
from families import FAMILIES, Family
from slim_files import SLIM_FILES, SlimFile
from steps import STEPS, Tried

SLIM_STEP = "train"

PATHS = re.compile(r"^slim_det: error: |(?<!\S)/\S*/configs/slim/\S+\.yml: ")
"""What a reason in the table leaves out."""

TIMEOUT = 1200
"""Seconds after which a step has failed."""


def main() -> int:
    """Try every family, print what happened, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("paddledetection", type=Path, help="a checkout of release/2.6")
    parser.add_argument("--work", type=Path, default=Path("output/compatibility"))
    parser.add_argument("--only", nargs="+", default=[""], help="parts of names")
    parser.add_argument("--table", type=Path, help="write the tables here")
    args = parser.parse_args()
    work, checkout = args.work.absolute(), args.paddledetection.absolute()
    if not (checkout / "configs" / "datasets").is_dir():
        print(f"error: '{args.paddledetection}' is no checkout of PaddleDetection", file=sys.stderr)
        return 2
    draw_data_sets(work)
    for family in FAMILIES:
        if any(text in family.name for text in args.only):
            try_family(family, work, checkout)
    for slim_file in SLIM_FILES:
        if any(text in slim_file.name for text in args.only):
            try_slim_file(slim_file, work, checkout)
    if args.table:
        args.table.write_text(table(work) + slim_table(work), encoding="utf-8")
    return 0


def try_family(family: Family, work: Path, checkout: Path) -> None:
    """Run the steps of a family in order, except those that passed before."""
    folder = work / family.name
    folder.mkdir(exist_ok=True)
    config = checkout / "configs" / family.config
    if not config.is_file():
        print(f"{family.name}: {family.config} is not in this checkout")
        return
    passed: set[str] = {""}
    for step in STEPS:
        if Tried.read(folder, step.name).passed:
            passed.add(step.name)
            continue
        if step.needs not in passed:
            (folder / f"{step.name}.json").unlink(missing_ok=True)
            continue
        tried = run(step.command(family, config, folder), folder, step.name)
        tried.write(folder, step.name)
        passed.update([step.name] if tried.passed else [])
        print(f"{family.name:12} {step.name:14} {tried}", flush=True)


def try_slim_file(slim_file: SlimFile, work: Path, checkout: Path) -> None:
    """Give a slim file to its script, unless that passed before.

    The weights that it names are random ones, under the name of the download.
    """
    folder = work / slim_file.name
    folder.mkdir(exist_ok=True)
    config = checkout / "configs" / slim_file.config
    if not slim_file.file(checkout).is_file() or not config.is_file():
        print(f"{slim_file.name}: it, or {slim_file.config}, is not in this checkout")
        return
    if Tried.read(folder, SLIM_STEP).passed:
        return
    start = slim_file.make_weights(checkout, folder, run)
    tried = run(slim_file.command(checkout, folder, start), folder, SLIM_STEP, HOME=str(folder))
    tried.write(folder, SLIM_STEP)
    print(f"{slim_file.name:50} {tried}", flush=True)


def run(arguments: list[str], folder: Path, name: str, **variables: str) -> Tried:
    """Run one step in the folder that holds the data sets.

    Args:
        arguments: Behind `python`.
        folder: Of its log, `NAME.log`.
        name: Of the step.
        variables: Of its environment.
    """
    command = [sys.executable, *arguments]
    threads = os.environ.get("OMP_NUM_THREADS", "2")
    environment = {**os.environ, "OMP_NUM_THREADS": threads, **variables}
    start = time.monotonic()
    with (folder / f"{name}.log").open("w", encoding="utf-8") as log:
        log.write(f"$ {' '.join(command)}\n")
        log.flush()
        try:
            done = subprocess.run(
                command, cwd=folder.parent, env=environment, stdout=log, stderr=subprocess.STDOUT,
                timeout=TIMEOUT, check=False,
            )  # fmt: skip
            code = done.returncode
        except subprocess.TimeoutExpired:
            code = -1
    text = (folder / f"{name}.log").read_text(encoding="utf-8", errors="replace")
    return Tried.of(code, text, time.monotonic() - start)


def table(work: Path) -> str:
    """Markdown: a row for each family, a column for each step."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("paddlepaddle", "paddledet"))
    lines = [
        f"Python {platform.python_version()}, {versions}, {platform.machine()}, {date.today()}",
        "",
        "| family | configuration | cuttable | " + " | ".join(step.name for step in STEPS) + " |",
        "|---" * (len(STEPS) + 3) + "|",
    ]
    notes: list[str] = []
    for family in FAMILIES:
        cells, cuttable = [], ""
        for step in STEPS:
            tried = Tried.read(work / family.name, step.name)
            cuttable = tried.cuttable or cuttable
            if tried.reason and not tried.passed:
                notes.append(f"- {family.name}, {step.name}: {tried.reason}")
            cells.append(tried.cell)
        row = [family.name, f"`{family.config}`", cuttable, *cells]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, "", *notes, ""])


def slim_table(work: Path) -> str:
    """Markdown: a row for each slim file."""
    lines = ["", "| slim file | configuration | two steps | |", "|---|---|---|---|"]
    for slim_file in SLIM_FILES:
        tried = Tried.read(work / slim_file.name, SLIM_STEP)
        reason = "" if tried.passed else PATHS.sub("", tried.reason)
        row = [f"`{slim_file.path}.yml`", f"`{slim_file.config}`", tried.cell, reason]
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    sys.exit(main())

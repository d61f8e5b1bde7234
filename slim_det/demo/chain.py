"""The demo: trains, prunes, fine-tunes, exports and evaluates with the public commands."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from slim_det.core.errors import ConfigError, SlimDetError
from slim_det.core.files import write_json
from slim_det.demo import draw_shapes

CONFIG = "configs/yolov3/shapes.yml"
FINE_TUNE = "configs/yolov3/shapes_finetune.yml"
SLIM = "configs/yolov3/prune_r578.yml"
DATA = "dataset/shapes"
NUM_TRAIN = 480
NUM_VAL = 80
IMAGE_SIZE_HW = (128, 128)
PICTURES = 4
MIN_AP50 = 0.5


def run_demo(output_dir: str | Path) -> dict[str, Any]:
    """Run the complete workflow in the current folder, which must contain ``configs/``.

    Args:
        output_dir: Folder for checkpoints, exported models, results and the picture.

    Returns:
        ``rows`` of the final table, metrics before fine-tuning (``cut_only``), and ``seconds``.

    Raises:
        ConfigError: A configuration is not below the current folder.
        SlimDetError: A command failed, or the base model did not learn enough.
    """
    for path in (CONFIG, FINE_TUNE, SLIM):
        if not Path(path).is_file():
            raise ConfigError(f"'{path}' does not exist here; run the demo in a checkout's root")
    start, out = time.monotonic(), Path(output_dir)
    out.mkdir(parents=True, exist_ok=True)
    print(f"drawing the data set in {DATA}")
    draw_shapes(DATA, NUM_TRAIN, NUM_VAL, IMAGE_SIZE_HW)
    _copy_samples(out / "samples")
    base, pruned = f"{out}/base/shapes/model_final", f"{out}/r578/shapes_finetune/model_final"
    _run("train", "-c", CONFIG, "--seed", "0", "-o", f"save_dir={out}/base")
    _run("eval", "-c", CONFIG, "-o", f"weights={base}", "--slim_config", SLIM,
         "--json", f"{out}/cut_only.json")  # fmt: skip
    _run("train", "-c", FINE_TUNE, "--seed", "0", "--slim_config", SLIM,
         "-o", f"save_dir={out}/r578", f"pretrain_weights={base}")  # fmt: skip
    rows = [_measure(out, "base", CONFIG, base), _measure(out, "r578", FINE_TUNE, pruned)]
    _add_latency(rows)
    figures = {
        "rows": rows,
        "cut_only": json.loads((out / "cut_only.json").read_text(encoding="utf-8")),
        "seconds": time.monotonic() - start,
    }
    write_json(out / "demo.json", figures)
    _draw(out, rows)
    if rows[0]["ap50"] <= MIN_AP50:
        raise SlimDetError(
            f"the base model reaches AP50 {rows[0]['ap50']:.3f}, expected more than {MIN_AP50}"
        )
    return figures


def _run(*arguments: str) -> None:
    """Print and run one command, in a process of its own."""
    print(f"$ slim-det {shlex.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", "slim_det.cli", *arguments], check=False)
    if done.returncode:
        raise SlimDetError(f"slim-det {arguments[0]} ended with exit code {done.returncode}")


def _copy_samples(folder: Path) -> None:
    """Copy the last validation images, for the picture."""
    folder.mkdir(exist_ok=True)
    for sample in sorted(Path(DATA, "images").glob("*.jpg"))[-PICTURES:]:
        shutil.copy(sample, folder)


def _measure(out: Path, name: str, config: str, weights: str) -> dict[str, Any]:
    """Export one model, evaluate the exported file and draw its boxes on the samples."""
    exported, folder = out / f"{name}_export.json", out / "export" / name
    _run("export", "-c", config, "-o", f"weights={weights}", "--output_dir", str(folder),
         "--json", str(exported))  # fmt: skip
    row = json.loads(exported.read_text(encoding="utf-8"))
    scores = out / f"{name}_eval.json"
    _run("eval", "-c", config, "--artifact", row["artifact"], "--json", str(scores))
    row.update(json.loads(scores.read_text(encoding="utf-8")), name=name)
    _run("infer", "-c", config, "--artifact", row["artifact"], "--infer_dir", f"{out}/samples",
         "--output_dir", f"{out}/pictures/{name}")  # fmt: skip
    return row


def _add_latency(rows: list[dict[str, Any]]) -> None:
    from slim_det.deploy.latency import compare_latency

    for row, measured in zip(rows, compare_latency([row["artifact"] for row in rows])):
        row["latency_ms"], row["speedup"] = measured.latency_ms, measured.speedup


def _draw(out: Path, rows: list[dict[str, Any]]) -> None:
    """Save a picture of the detections: one column per image, one row per model."""
    from PIL import Image, ImageDraw

    names = sorted(os.listdir(out / "pictures" / rows[0]["name"]))
    tiles = [[Image.open(out / "pictures" / row["name"] / n) for n in names] for row in rows]
    width, height, title = tiles[0][0].width * 2, tiles[0][0].height * 2, 16
    sheet = Image.new("RGB", (width * len(names), (height + title) * len(rows)), "white")
    pen = ImageDraw.Draw(sheet)
    for y, (row, line) in enumerate(zip(rows, tiles)):
        top = y * (height + title)
        pen.text((4, top + 2), f"{row['name']}: AP50 {row['ap50']:.3f}", fill="black")
        for x, tile in enumerate(line):
            sheet.paste(tile.resize((width, height)), (x * width, top + title))
    sheet.save(out / "demo.png")

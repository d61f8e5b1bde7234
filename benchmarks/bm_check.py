"""Checking a data set of COCO's size: for the first time, again, and with every image decoded.

    python benchmarks/bm_check.py [--images 118000] [--objects 7] [--kb 160]

Draws noise on 100 images of 640 x 480 until their files have the size of COCO's, and links them
under as many names as asked. The plain way decodes every image with Pillow in one thread; it is
timed for a sample of images, and the ratio is that of images per second.
"""

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SOURCES = 100
SIZE_HW = (480, 640)


class Config(dict):
    """Settings by name and by attribute, as ppdet's are."""

    __getattr__ = dict.__getitem__


def main() -> None:
    """Time the checks and print images per second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=118_000)
    parser.add_argument("--objects", type=int, default=7, help="per image")
    parser.add_argument("--kb", type=float, default=160, help="size of an image")
    args = parser.parse_args()
    print(f"python {platform.python_version()}, {platform.machine()} CPU, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["XDG_CACHE_HOME"] = f"{folder}/cache"
        root = Path(folder, "data")
        sources = draw(root, args.kb)
        annotate(root, sources, args.images, args.objects)
        measure(root, args.images, sources)


def draw(root: Path, kilobytes: float) -> list[Path]:
    """Write images whose noise gives them the size asked for."""
    (root / "sources").mkdir(parents=True)
    rng = np.random.default_rng(0)
    sources = [root / "sources" / f"{i}.jpg" for i in range(SOURCES)]
    for path in sources:
        smooth = rng.integers(40, 200, (15, 20, 3), np.uint8)
        picture = np.asarray(Image.fromarray(smooth).resize(SIZE_HW[::-1]), np.int16)
        low, high = 0, 128
        while high - low > 1:
            spread = (low + high) // 2
            noisy = picture + rng.integers(-spread, spread + 1, picture.shape)
            Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(path, quality=90)
            low, high = (spread, high) if path.stat().st_size < kilobytes * 1e3 else (low, spread)
    mean = np.mean([path.stat().st_size for path in sources]) / 1e3
    print(f"{SOURCES} images of {mean:.0f} kB on average")
    return sources


def annotate(root: Path, sources: list[Path], count: int, objects: int) -> None:
    """Link the images under many names, and write their annotations."""
    (root / "images").mkdir()
    for i in range(count):
        os.link(sources[i % SOURCES], root / "images" / f"{i:012}.jpg")
    height, width = SIZE_HW
    content = {
        "images": [
            {"id": i, "file_name": f"{i:012}.jpg", "height": height, "width": width}
            for i in range(count)
        ],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(80)],
        "annotations": [
            {
                "id": i + 1,
                "image_id": i // objects,
                "category_id": i % 80,
                "bbox": [i % 600, i % 440, 30.5, 20.25],
                "area": 617.6,
                "iscrowd": 0,
                "segmentation": [[float(i % 600)] * 40],
            }
            for i in range(count * objects)
        ],
    }
    (root / "instances.json").write_text(json.dumps(content))


def measure(root: Path, count: int, sources: list[Path]) -> None:
    """Time each way of checking."""
    from slim_det.evaluate.data.check import check_dataset, inspect_dataset

    settings = {
        "name": "COCODataSet",
        "dataset_dir": str(root),
        "image_dir": "images",
        "anno_path": "instances.json",
    }
    cfg = Config(TrainDataset=settings, num_classes=80)
    start = time.perf_counter()
    for path in sources * 3:
        Image.open(path).load()
    plain = 3 * len(sources) / (time.perf_counter() - start)
    print(f"{'plain way':28} {plain:8.0f} images/s")
    for label, check in (
        ("first time", check_dataset),
        ("again", check_dataset),
        ("every image decoded", inspect_dataset),
    ):
        start = time.perf_counter()
        check(cfg, "TrainDataset")
        seconds = time.perf_counter() - start
        rate = count / seconds
        print(f"{label:28} {rate:8.0f} images/s {seconds:7.1f} s {rate / plain:7.1f}x")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"peak memory {peak:.2f} GB")


if __name__ == "__main__":
    main()

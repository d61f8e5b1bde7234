"""An image that a reader cannot prepare ends every command within seconds, with one line."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.commands import command, files_below, process_environment, write_tiny
from tests.forks import Forks

LIMIT_S = 60
SCRIPT = Path(__file__).with_name("train_script.py")

READERS = """
import sys
from multiprocessing import active_children

from slim_det.core.process import prepare_process

prepare_process()
import numpy as np
from ppdet.data.reader import TrainReader
from ppdet.data.source.dataset import ImageFolder
from ppdet.data.transform import operators

class Objects(operators.BaseOperator):
    def apply(self, sample, context=None):
        return {**sample, "odd": np.array([None])}

operators.registered_ops.append(Objects)
from ppdet.data import transform
transform.Objects = Objects

folder = sys.argv[1]
RESIZE = {"Resize": {"target_size": [32, 32], "keep_ratio": False}}
MASK = [{"Poly2Mask": {}}]
CASES = {
    "decode": ("text.jpg", [RESIZE], []),
    "step": ("wide.png", [{"Resize": {**RESIZE["Resize"], "interp": 99}}], []),
    "some": ("wide.png", [{"RandomSelect": {"transforms1": MASK, "transforms2": MASK}}], []),
    "batch": ("wide.png", [RESIZE], [{"PadBox": {}}]),
    "sizes": ("wide.png", [], [{"BatchRandomResize": {"target_size": [64], "keep_ratio": True}}]),
    "types": ("wide.png", [RESIZE, {"Objects": {}}], []),
}
for name, (last, steps, batch_steps) in CASES.items():
    for workers in (0, 2):
        images = ImageFolder()
        images.set_images([f"{folder}/{file}" for file in ("a.png", "b.png", last)])
        reader = TrainReader([{"Decode": {}}, *steps], batch_steps, batch_size=3, shuffle=False)
        try:
            print(name, workers, len(list(reader(images, workers))))
        except Exception as error:
            print(name, workers, type(error).__name__, str(error).replace(folder, "."))
print("left", active_children())
"""

SAID = {
    "decode": "Decode failed on './text.jpg': OpenCV cannot read it as an image",
    "step": "Resize failed on './a.png': error: OpenCV",
    "some": "Poly2Mask failed on './a.png': ",
    "batch": "PadBox failed on one of 3 images: './a.png', './b.png', './wide.png': "
    "AssertionError: assert 'gt_bbox' in sample",
    "sizes": "batching failed on './wide.png': the shape of 'image' is [32, 64, 3], that of "
    "'./a.png' in the same batch [64, 64, 3]; expected one shape",
    "types": "'odd' of a batch has the type object; expected numbers",
}


GARBAGE = """
import gc
import sys
from multiprocessing import Process

from slim_det.core.process import prepare_process

prepare_process()
from ppdet.data.reader import TestReader
from ppdet.data.source.dataset import ImageFolder

gc.disable()
for _ in range(2):  # Paddle itself keeps the last one
    images = ImageFolder()
    images.set_images([sys.argv[1]])
    reader = TestReader([{"Decode": {}}])(images, 0)
    cycle = [reader, reader.loader]
    cycle.append(cycle)
    print(len(list(reader)))
    del reader, cycle
worker = Process(target=gc.collect, daemon=True)
worker.start()
worker.join(20)
print(worker.exitcode)
"""


def draw(folder: Path) -> Path:
    """Two square images, a wide one, and text under the name of one."""
    from PIL import Image

    for name, size in (("a", (64, 64)), ("b", (64, 64)), ("wide", (128, 64))):
        Image.new("RGB", size, "gray").save(folder / f"{name}.png")
    (folder / "text.jpg").write_text("no image")
    return folder


def test_every_step_in_a_thread_and_in_worker_processes(tmp_path: Path) -> None:
    """The error names reader, step and image; no traceback is printed, no process goes on."""
    done = subprocess.run(
        [sys.executable, "-c", READERS, str(draw(tmp_path))],
        env=process_environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines.pop() == "left []"
    expected = [
        f"{name} {workers} DataError TrainReader: {said}"
        for name, said in SAID.items()
        for workers in (0, 2)
    ]
    assert len(lines) == len(expected), done.stdout
    for line, start in zip(lines, expected):
        assert line.startswith(start), line


def test_a_worker_process_does_not_delete_a_reader_of_the_command(tmp_path: Path) -> None:
    """It would wait for the threads of that reader, which only the command has."""
    done = subprocess.run(
        [sys.executable, "-c", GARBAGE, str(draw(tmp_path) / "a.png")],
        env=process_environment(OMP_NUM_THREADS="1"),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.stdout.splitlines() == ["1", "1", "0"], done.stderr


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """A configuration whose readers look for masks, which no image has."""
    resize = {"Resize": {"target_size": [96, 96], "keep_ratio": False}}
    steps = [{"Decode": {}}, {"Poly2Mask": {}}, resize]
    path = write_tiny(tmp_path_factory.mktemp("faulty") / "faulty.yml", shapes)
    readers = "".join(
        f"{name}Reader: {{sample_transforms: {steps}}}\n" for name in ("Train", "Eval", "Test")
    )
    own = path.with_name("own.yml")
    own.write_text(f"_BASE_: [{path}]\n{readers}")
    return own


SOUND_TEST_READER = (
    "TestReader.sample_transforms=[{Decode: {}}, {Resize: {target_size: [96, 96], "
    "keep_ratio: false}}, {Permute: {}}]"
)
"""`quantize` refuses a `TestReader` that `infer_cfg.yml` cannot express."""


@pytest.mark.parametrize(
    ("reader", "workers", "arguments"),
    [
        ("Train", 0, ("train",)),
        ("Train", 2, ("train",)),
        ("Eval", 0, ("eval",)),
        ("Eval", 2, ("eval",)),
        ("Eval", 2, ("sensitivity", "--ratios", "0.5", "--params", "*tip")),
        ("Eval", 2, ("quantize", "--images", 2, SOUND_TEST_READER)),
        ("Test", 0, ("infer", "--infer_img")),
    ],
)
def test_command(
    forks: Forks,
    faulty: Path,
    unpruned: Path,
    shapes: Path,
    reader: str,
    workers: int,
    arguments: tuple[Any, ...],
) -> None:
    """Exit code 2 and one line; nothing is written, no process is left."""
    if arguments[-1] == "--infer_img":
        arguments = (*arguments, sorted((shapes / "images").iterdir())[0])
    overrides = [f"weights={unpruned}", f"pretrain_weights={unpruned}", f"worker_num={workers}"]
    if SOUND_TEST_READER in arguments:
        arguments = tuple(part for part in arguments if part != SOUND_TEST_READER)
        overrides.append(SOUND_TEST_READER)
    before, end = saved(forks.folder), time.monotonic() + LIMIT_S
    command, *others = arguments
    run = (command, "-c", faulty, *others, "-o", *overrides)
    code = forks.run(*run, until=lambda: time.monotonic() > end)
    assert code == 2, forks.error()
    (line,) = forks.error().splitlines()
    start = f"slim-det {command}: error: {reader}Reader: Poly2Mask failed on '{shapes}/images/"
    assert line.startswith(start) and line.endswith("': AssertionError: assert 'gt_poly' in sample")
    assert saved(forks.folder) == before
    assert forks.left() == []


def saved(folder: Path) -> dict[str, str]:
    """Files below a folder, without the streams of a command and folders."""
    files = files_below(folder)
    return {n: x for n, x in files.items() if not n.startswith("stream") and x != "folder"}


def test_script(faulty: Path, tmp_path: Path) -> None:
    """`python -m slim_det SCRIPT` too."""
    run = command("-c", faulty, script=SCRIPT, cwd=tmp_path, timeout_s=LIMIT_S)
    assert run.code == 2, run.err
    (line,) = run.err.splitlines()
    assert line.startswith("slim_det: error: TrainReader: Poly2Mask failed on '")
    assert not list(tmp_path.rglob("*.pdparams"))

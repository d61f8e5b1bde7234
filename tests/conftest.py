"""Fixtures for all tests: ppdet's configuration, a tiny detector, the command line."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.commands import CONFIGS, IMAGE_SIDE, Outcome, command, write_tiny
from tests.support import ROOT, restored_config

SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def ppdet_registered() -> None:
    """Import ppdet with slim_det registered, while its loggers still find the real stdout."""
    import slim_det  # noqa: F401, I001  (before ppdet, as in every command)
    import ppdet  # noqa: F401


@pytest.fixture
def fresh_config(ppdet_registered: None) -> Iterator[Any]:
    """ppdet's process-wide configuration, restored after the test."""
    from ppdet.core.workspace import global_config

    with restored_config():
        yield global_config


@pytest.fixture
def shared() -> Path:
    """Folder of the photographs and trained weights that the configurations name."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the data and weights of ../{SHARED.name}, which is not there")
    return SHARED


@pytest.fixture
def bccd(shared: Path) -> Path:
    """The data set of blood cells."""
    folder = shared / "data" / "bccd"
    if not (folder / "val.txt").is_file():
        pytest.skip(f"needs ../{folder.relative_to(ROOT.parent)}, which is not there")
    return folder


@pytest.fixture
def bccd_weights(shared: Path) -> Path:
    """A YOLOv3-MobileNetV1 that was trained on blood cells."""
    path = shared / "weights" / "yolov3_mobilenet_v1_bccd.pdparams"
    if not path.is_file():
        pytest.skip(f"needs ../{path.relative_to(ROOT.parent)}, which is not there")
    return path


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn data set of 16 + 6 images that no test changes."""
    from slim_det.demo import draw_shapes

    root = tmp_path_factory.mktemp("shapes") / "set"
    side = (IMAGE_SIDE, IMAGE_SIDE)
    return draw_shapes(root, num_train=16, num_val=6, image_size_hw=side, seed=1).root


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """A configuration of the shapes detector whose epoch takes a second."""
    return write_tiny(tmp_path_factory.mktemp("tiny") / "tiny.yml", shapes)


@pytest.fixture
def tiny_cfg(fresh_config: Any, tiny: Path) -> Any:
    """The same, loaded: 16 images to train on, 6 to evaluate, 96 pixels square."""
    from slim_det.training.config import load_config

    return load_config(tiny)


@pytest.fixture(scope="session")
def tiny_voc(tiny: Path, shapes: Path) -> Path:
    """The same detector and images, with VOC's annotations and metric."""
    names = {"Train": "train.txt", "Eval": "val.txt", "Test": "label_list.txt"}
    parts: dict[str, Any] = {
        f"{part}Dataset": {"dataset_dir": str(shapes), "anno_path": name, "image_dir": ""}
        for part, name in names.items()
    }
    for part in ("Train", "Eval"):
        parts[f"{part}Dataset"].update(
            name="VOCDataSet",
            label_list="label_list.txt",
            data_fields=["image", "gt_bbox", "gt_class", "difficult"],
        )
    parts["EvalReader"] = {"collate_batch": False}
    base = {"_BASE_": [str(tiny)], "metric": "VOC", "map_type": "11point"}
    path = tiny.with_name("tiny_voc.yml")
    path.write_text(yaml.safe_dump({**base, **parts}), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def r578() -> Path:
    """The slim file that prunes 50, 70 and 80 % of the three blocks of a YOLOv3 head."""
    return CONFIGS / "prune_r578.yml"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny: Path, r578: Path) -> Path:
    """Path, without suffix, of a pruned checkpoint after one epoch; no test changes it."""
    folder = tmp_path_factory.mktemp("trained")
    run = command(
        *("train", "-c", tiny, "--slim_config", r578, "--eval", "--seed", 0),
        *("-o", f"save_dir={folder}"),
        cwd=folder,
    )
    (folder / "train.log").write_text(run.out + run.err)
    assert run.code == 0, run.err + run.out
    return folder / "tiny" / "model_final"


@pytest.fixture(scope="session")
def unpruned(tmp_path_factory: pytest.TempPathFactory, tiny: Path, ppdet_registered: None) -> Path:
    """Path, without suffix, of untrained weights of the unpruned tiny detector."""
    import paddle

    from slim_det.training import session
    from slim_det.training.config import load_config

    stem = tmp_path_factory.mktemp("unpruned") / "unpruned"
    with restored_config():
        paddle.seed(0)
        model = session.build_model(load_config(tiny))
        paddle.save(model.state_dict(), f"{stem}.pdparams")
    return stem


@pytest.fixture
def cli(
    ppdet_registered: None, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., Outcome]]:
    """Run a command in this process and return its outcome; the process is restored afterwards."""
    from paddle.utils import unique_name

    from slim_det.cli import main

    logger = logging.getLogger("slim_det")
    state = list(logger.handlers), logger.level, logger.propagate
    environment = dict(os.environ)

    def run(*arguments: Any) -> Outcome:
        capfd.readouterr()
        logger.handlers = []  # the last one may write to a stream of the setup, which is closed
        try:
            # Slots of an optimizer are numbered from zero, as in a process of its own.
            with restored_config(), unique_name.guard():
                code = main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse
            code = int(error.code or 0)
        return Outcome(code, *capfd.readouterr())

    try:
        yield run
    finally:
        logger.handlers, logger.level, logger.propagate = state
        os.environ.clear()
        os.environ.update(environment)

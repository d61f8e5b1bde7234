"""Reading the images that an exported model is checked on."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from slim_det.core.errors import ConfigError, ExportError
from slim_det.core.silence import quiet_stdout
from slim_det.detectors.image_size import sizes_vary, with_size

logger = logging.getLogger("slim_det")

CHECKED_IMAGES = 8


def image_batches(
    cfg: Any, images: list[str], image_size_hw: tuple[int, int] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read images one at a time, prepared by ``TestReader``; yields path and batch.

    The reader's own batch size is not used, nor its size if another one is given.
    """
    from ppdet.core.workspace import create

    dataset = create("TestDataset")()
    dataset.set_images(images)
    size = (
        _resizing(cfg, "TestReader", image_size_hw) if image_size_hw else contextlib.nullcontext()
    )
    with size:
        reader = create("TestReader")
    reader.batch_size = 1
    with quiet_stdout():
        loader = reader(dataset, 0)
    paths = dataset.get_imid2path()
    for batch in loader.loader:  # ppdet's own would begin to read them all again at the end
        yield paths[int(np.asarray(batch["im_id"]).ravel()[0])], batch


def eval_images(remedy: str) -> list[str]:
    """Paths of the first `CHECKED_IMAGES` images of ``EvalDataset``.

    Args:
        remedy: What the user can do if it cannot be read, for the error message.

    Raises:
        ExportError: ``EvalDataset`` cannot be read.
    """
    from ppdet.core.workspace import create

    try:
        dataset = create("EvalDataset")()
        dataset.parse_dataset()
    except (OSError, ValueError, AssertionError, KeyError) as error:
        raise ExportError(
            f"no images to compare the engines on: EvalDataset cannot be read ({error}); {remedy}"
        ) from error
    return [record["im_file"] for record in dataset.roidbs[:CHECKED_IMAGES]]


@contextlib.contextmanager
def eval_at(cfg: Any, image_size_hw: tuple[int, int]) -> Iterator[None]:
    """Make ``EvalReader`` resize to the input size of an exported model inside the context.

    A reader without ``Resize`` gets that of ``TestReader``. Images that keep their ratio are read
    one at a time, as larger ones in a batch would change their padding.
    """
    reader = cfg["EvalReader"]
    steps = reader.get("sample_transforms") or []
    sizes = [step["Resize"].get("target_size") for step in steps if step.get("Resize")]
    warped = any("WarpAffine" in step for step in steps)
    expected = (list(image_size_hw), image_size_hw[0])
    if not warped and any(size not in expected for size in sizes or [None]):
        logger.info(
            "EvalReader %s; the model was exported for %dx%d and is evaluated at that size",
            f"resizes to {sizes[0]}" if sizes else "does not resize",
            *image_size_hw,
        )
    size = {"batch_size": 1} if sizes_vary(steps) else {}
    with _resizing(cfg, "EvalReader", image_size_hw), _changed(reader, size):
        yield


def require_one_size(cfg: Any, what: str) -> None:
    """Check that ``EvalReader`` gives images of one size.

    Args:
        cfg: ppdet's configuration.
        what: What needs it, for the error message.

    Raises:
        ConfigError: Images keep their ratio or their size.
    """
    if sizes_vary(cfg["EvalReader"].get("sample_transforms") or []):
        raise ConfigError(
            f"{what} needs images of one size, and EvalReader gives each another one; expected "
            "keep_ratio: false in its Resize"
        )


@contextlib.contextmanager
def _changed(settings: Any, changes: dict[str, Any]) -> Iterator[None]:
    """Change settings inside the context."""
    before = {key: settings[key] for key in changes}
    settings.update(changes)
    try:
        yield
    finally:
        settings.update(before)


@contextlib.contextmanager
def _resizing(cfg: Any, name: str, image_size_hw: tuple[int, int]) -> Iterator[None]:
    """Make a reader resize to this height and width inside the context, if it has any steps."""
    reader = cfg[name]
    steps = reader.get("sample_transforms") or []
    try:
        if steps:
            reader["sample_transforms"] = _resized(steps, image_size_hw, cfg)
        yield
    finally:
        if steps:
            reader["sample_transforms"] = steps


def _resized(steps: list[Any], image_size_hw: tuple[int, int], cfg: Any) -> list[Any]:
    """The transforms with this size wherever one is given, or in a new one after ``Decode``."""
    size = {"target_size": list(image_size_hw)}
    if any(name in step for step in steps for name in ("Resize", "WarpAffine")):
        return with_size(steps, image_size_hw)
    tested = (cfg.get("TestReader") or {}).get("sample_transforms") or []
    like = next((step["Resize"] for step in tested if step.get("Resize")), {"keep_ratio": False})
    place = next((i + 1 for i, step in enumerate(steps) if "Decode" in step), 0)
    return [*steps[:place], {"Resize": {**like, **size}}, *steps[place:]]

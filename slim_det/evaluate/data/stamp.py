"""Remembers data sets that passed their check, so that the next command need not read them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from slim_det.core.errors import SlimDetError
from slim_det.core.files import write_text
from slim_det.version import __version__

logger = logging.getLogger("slim_det")


_REVISION = 2
"""Raised when more is checked, so that data sets that passed before are read again."""


@dataclass(frozen=True)
class Passed:
    """What a check found in a data set without faults.

    Attributes:
        num_images: Number of images.
        remarks: Lines to log.
        classes: Names of its classes, in order.
    """

    num_images: int
    remarks: list[str]
    classes: list[str]


def read(source: Any) -> Passed | None:
    """The result of an earlier check.

    Args:
        source: A dataclass that says where a data set is.

    Returns:
        None if there was none, or one of its files has another size or time.
    """
    try:
        stored = json.loads(_path(source).read_text(encoding="utf-8"))
        if stored["files"] == _stats([Path(name) for name, *_ in stored["files"]]):
            return Passed(stored["num_images"], stored["remarks"], stored["classes"])
    except (OSError, ValueError, LookupError, TypeError):
        logger.debug("no stamp of an earlier check")
    return None


def write(source: Any, passed: Passed, files: Sequence[Path]) -> None:
    """Remember a result with the sizes and times of all files; nothing happens if that fails.

    Args:
        source: See `read`.
        passed: The result.
        files: Every file that was read.
    """
    with contextlib.suppress(OSError, SlimDetError):
        content = {**asdict(passed), "files": _stats(files)}
        write_text(_path(source), json.dumps(content))


def _path(source: Any) -> Path:
    key = json.dumps({"version": [__version__, _REVISION], **asdict(source)}, default=_absolute)
    digest = hashlib.sha256(key.encode()).hexdigest()
    return user_cache_path("slim_det") / "checks" / f"{digest}.json"


def _absolute(path: Path) -> str:
    return str(path.absolute())


def _stats(files: Sequence[Path]) -> list[list[Any]]:
    stats = ((str(path.absolute()), path.stat()) for path in files)
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]

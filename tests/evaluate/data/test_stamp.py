"""What passed a check is remembered, but never more than that."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from slim_det.evaluate.data import stamp
from slim_det.evaluate.data.stamp import Passed

PASSED = Passed(3, ["a remark"], ["cat"])


@dataclass(frozen=True)
class _Source:
    root: Path
    most: int = -1


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Source:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "a").write_text("a")
    return _Source(tmp_path)


def test_what_was_written_is_read(source: _Source) -> None:
    assert stamp.read(source) is None
    stamp.write(source, PASSED, [source.root / "a"])
    assert stamp.read(source) == PASSED
    assert stamp.read(_Source(source.root, 2)) is None


@pytest.mark.parametrize("change", ["size", "time", "gone"])
def test_files_that_have_changed(source: _Source, change: str) -> None:
    path = source.root / "a"
    stamp.write(source, PASSED, [path])
    if change == "size":
        times = path.stat()
        path.write_text("ab")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    elif change == "time":
        os.utime(path, ns=(0, 0))
    else:
        path.unlink()
    assert stamp.read(source) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": 3}', '{"files": [[1]]}', "\0"])
def test_stamps_that_are_damaged(source: _Source, content: str) -> None:
    stamp.write(source, PASSED, [source.root / "a"])
    (path,) = (source.root / "cache").rglob("*.json")
    path.write_text(content)
    assert stamp.read(source) is None


def test_cache_that_cannot_be_written(source: _Source) -> None:
    (source.root / "cache").write_text("a file")
    stamp.write(source, PASSED, [source.root / "a"])
    assert stamp.read(source) is None

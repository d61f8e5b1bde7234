"""Files are old or new, never half-written."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from slim_det.core.errors import ConfigError
from slim_det.core.files import (
    output_folders,
    read_json,
    require_writable,
    sha256_of,
    staged_folder,
    write_atomically,
    write_json,
    write_text,
)


class Interruption(Exception):
    """Anything that ends a write."""


def writer(text: str):
    return lambda path: Path(path).write_text(text)


def interrupted(path: str) -> None:
    Path(path).write_text("half")
    raise Interruption


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_no_files_are_no_files(tmp_path: Path) -> None:
    write_atomically({})
    assert names(tmp_path) == set()


def test_written_with_folders_and_ordinary_rights(tmp_path: Path) -> None:
    """Temporary files are private; the final file is as readable as any other."""
    target = tmp_path / "a" / "b" / "file"
    plain = tmp_path / "plain"
    plain.write_text("")
    write_atomically({target: writer("new")})
    assert target.read_text() == "new"
    assert target.stat().st_mode == plain.stat().st_mode


def test_interrupted_write_changes_nothing(tmp_path: Path) -> None:
    """Both old files stay, and no temporary one is left."""
    (tmp_path / "first").write_text("old 1")
    (tmp_path / "second").write_text("old 2")
    with pytest.raises(Interruption):
        write_atomically({tmp_path / "first": writer("new"), tmp_path / "second": interrupted})
    assert names(tmp_path) == {"first", "second"}
    assert (tmp_path / "first").read_text() == "old 1"
    assert (tmp_path / "second").read_text() == "old 2"


def test_interrupted_between_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are renamed in the given order, and each is complete."""
    replace, renamed = os.replace, []

    def replace_one(source: str, target: Path) -> None:
        if renamed:
            raise Interruption
        renamed.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_one)
    files = {tmp_path / name: writer(name * 1000) for name in ("one", "two", "three")}
    with pytest.raises(Interruption):
        write_atomically(files)
    assert names(tmp_path) == {"one"}
    assert (tmp_path / "one").read_text() == "one" * 1000


def test_target_always_holds_a_complete_text(tmp_path: Path) -> None:
    """While the new content is written, the old one is read."""
    target = tmp_path / "file"
    target.write_text("old")
    seen = []

    def write(path: str) -> None:
        Path(path).write_text("ne")
        seen.append(target.read_text())
        Path(path).write_text("new")

    write_atomically({target: write})
    assert seen == ["old"] and target.read_text() == "new"


@pytest.mark.parametrize("below", ["file/x", "/proc/x/y"])
def test_folder_that_cannot_be_written(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / below
    with pytest.raises(ConfigError, match=f"'{target}'.*expected a writable folder"):
        write_text(target, "text")
    with pytest.raises(ConfigError, match=f"'{target}'.*expected a writable folder"):
        require_writable(target)


def test_require_writable_makes_the_folder_only(tmp_path: Path) -> None:
    folder = require_writable(tmp_path / "a" / "b")
    assert folder.is_dir() and names(folder) == set()
    assert require_writable(str(folder)) == folder


def test_json_keeps_order_and_ends_in_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"b": 1, "a": [1.5, None]})
    text = (tmp_path / "x.json").read_text()
    assert list(json.loads(text)) == ["b", "a"] and text.endswith("}\n")


def test_sha256_of_a_file_of_several_blocks(tmp_path: Path) -> None:
    content = os.urandom((1 << 20) + 17)
    (tmp_path / "x").write_bytes(content)
    assert sha256_of(tmp_path / "x") == hashlib.sha256(content).hexdigest()


def test_no_output_folders(tmp_path: Path) -> None:
    with output_folders():
        pass
    assert names(tmp_path) == set()


def test_output_folders_stay_when_the_work_is_done(tmp_path: Path) -> None:
    with output_folders(tmp_path / "a" / "b", tmp_path / "c"):
        assert (tmp_path / "a" / "b").is_dir()
    assert names(tmp_path) == {"a", "c"}


def test_failed_work_takes_the_empty_folders_that_it_made_away(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(Interruption), output_folders(tmp_path / "mine" / "a", tmp_path / "b"):
        raise Interruption
    assert names(tmp_path) == {"mine"}
    assert names(tmp_path / "mine") == set()


def test_failed_work_leaves_what_was_written(tmp_path: Path) -> None:
    with pytest.raises(Interruption), output_folders(tmp_path / "a" / "b", tmp_path / "a" / "c"):
        write_text(tmp_path / "a" / "b" / "file", "whole")
        raise Interruption
    assert names(tmp_path / "a") == {"b"}


def test_an_output_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refusal = pytest.raises(ConfigError, match="expected a writable folder")
    with refusal, output_folders(tmp_path / "new", tmp_path / "file"):
        pytest.fail("the work must not begin")
    assert names(tmp_path) == {"file"}


def kind_of(path: Path, text: str) -> dict:
    path.write_text(text, encoding="utf-8")
    return read_json(path, "thing", "slim_det.thing/1", ConfigError)


def test_our_own_json(tmp_path: Path) -> None:
    whole = {"schema": "slim_det.thing/1", "a": [1]}
    assert kind_of(tmp_path / "x", json.dumps(whole)) == whole


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "thing '.*x' cannot be read"),
        ("[" * 100_000, "thing '.*x' cannot be read"),
        ("null", "'.*x' is not a thing: schema is 'NoneType', expected 'slim_det.thing/1'"),
        ("{}", "is not a thing: schema is None, expected"),
        ('{"schema": "slim_det.thing/2"}', "schema is 'slim_det.thing/2', expected"),
    ],
)
def test_what_is_none_of_our_json(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        kind_of(tmp_path / "x", text)


def test_json_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="thing '.*gone' does not exist"):
        read_json(tmp_path / "gone", "thing", "slim_det.thing/1", ConfigError)


def fill(target: Path, text: str, beside: Path | None = None) -> None:
    with staged_folder(target, beside) as folder:
        (folder / "file").write_text(text)


def test_staged_folder_appears_with_ordinary_rights(tmp_path: Path) -> None:
    fill(tmp_path / "made", "new")
    assert names(tmp_path) == {"made"}
    assert (tmp_path / "made" / "file").read_text() == "new"
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o755


def test_staged_folder_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    """Nothing of the older one remains; it is unchanged while the new one is filled."""
    target = tmp_path / "made"
    target.mkdir()
    (target / "other").write_text("old")
    with staged_folder(target) as folder:
        assert names(tmp_path) == {"made", folder.name} and folder.name.startswith(".made.")
        assert names(target) == {"other"}
        (folder / "file").write_text("new")
    assert names(tmp_path) == {"made"} and names(target) == {"file"}


@pytest.mark.parametrize("exists", [False, True])
def test_interrupted_staged_folder_changes_nothing(tmp_path: Path, exists: bool) -> None:
    target = tmp_path / "made"
    if exists:
        fill(target, "old")
    with pytest.raises(Interruption), staged_folder(target) as folder:
        (folder / "file").write_text("half")
        raise Interruption
    assert names(tmp_path) == ({"made"} if exists else set())
    assert not exists or (target / "file").read_text() == "old"


def test_staged_folder_that_cannot_take_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The older one is put back if the second rename fails."""
    target = tmp_path / "made"
    fill(target, "old")
    replace, calls = os.replace, []

    def second_fails(source: Path, destination: Path) -> None:
        calls.append(destination)
        if len(calls) == 2:
            raise OSError("no")
        replace(source, destination)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(OSError, match="no"):
        fill(target, "new")
    assert len(calls) == 3
    assert names(tmp_path) == {"made"} and (target / "file").read_text() == "old"


def test_staged_folder_beside_another(tmp_path: Path) -> None:
    """The outer folder never shows a temporary one in it."""
    outer = tmp_path / "outer"
    outer.mkdir()
    for text in ("old", "new"):
        with staged_folder(outer / "inner", beside=outer) as folder:
            assert folder.parent == tmp_path and folder.name.startswith(".outer.")
            assert names(outer) == ({"inner"} if text == "new" else set())
            (folder / "file").write_text(text)
    assert names(tmp_path) == {"outer"}
    assert (outer / "inner" / "file").read_text() == "new"

"""The journal after crashes, damage and mistakes: what was finished is never lost or changed."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slim_det.core.errors import SensitivityError
from slim_det.planning.sensitivity.journal import SCHEMA, Journal

HEADER = {"fingerprint": "f" * 64, "data_sha256": "0" * 64, "ratios": [0.1, 0.5]}
UNITS: dict[str, dict[str, Any]] = {
    "tip": {"0.1": 0.25, "0.5": -1.5e-07},
    "route é": {"ap": [1, None, True], "text": '","crc":7}'},
    "last": {},
}


def written(path: Path, units: dict[str, dict[str, Any]]) -> bytes:
    """The bytes of a complete journal."""
    path.unlink(missing_ok=True)
    with Journal(path, HEADER) as journal:
        for key, value in units.items():
            journal.append(key, value)
    return path.read_bytes()


def reread(path: Path, header: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    with Journal(path, header or HEADER) as journal:
        return dict(journal.entries)


def refused(path: Path, match: str, header: dict[str, Any] | None = None) -> str:
    """Opening fails in one line that names the file, and changes nothing."""
    before = path.read_bytes()
    with pytest.raises(SensitivityError, match=match) as caught:
        Journal(path, header or HEADER)
    assert path.read_bytes() == before
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def test_a_new_journal_holds_the_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "journal.jsonl"
    assert reread(path) == {}
    (line,) = path.read_text().splitlines()
    assert json.loads(line)["schema"] == SCHEMA
    assert json.loads(line)["ratios"] == [0.1, 0.5]


def test_an_empty_file_is_taken_as_new(path: Path) -> None:
    path.touch()
    assert reread(path) == {}
    assert path.read_bytes() == written(path, {})


def test_what_was_appended_is_there_again(path: Path) -> None:
    content = written(path, UNITS)
    assert reread(path) == UNITS
    assert list(reread(path)) == list(UNITS)
    assert path.read_bytes() == content
    assert content.splitlines()[1].startswith(b'{"key":"tip","value":{"0.1":0.25')
    assert content.endswith(b"}\n") and content.count(b"\n") == 4


def test_the_checksum_is_crc32_of_the_rest(path: Path) -> None:
    line = written(path, {"a": {}}).splitlines()[1]
    # crc32(b'{"key":"a","value":{}}'), computed by gzip
    assert line == b'{"key":"a","value":{},"crc":236694262}'


def test_a_journal_of_earlier_code_loads(path: Path) -> None:
    """Byte for byte as earlier code wrote it, cut short at the end."""
    path.write_bytes(
        b'{"num_images":6,"schema":"slim_det.sensitivity_journal/1","crc":2011370433}\n'
        b'{"key":"baseline 0:6","value":{"images":["AAA="]},"crc":859066186}\n'
        b'{"key":"tip@0.5 0:6","val'
    )
    assert reread(path, {"num_images": 6}) == {"baseline 0:6": {"images": ["AAA="]}}


def test_appending_goes_on_after_reopening(path: Path) -> None:
    complete = written(path, UNITS)
    written(path, {"tip": UNITS["tip"]})
    with Journal(path, HEADER) as journal:
        for key in list(UNITS)[1:]:
            journal.append(key, UNITS[key])
            assert key in path.read_text(encoding="utf-8").encode().decode("unicode_escape")
    assert path.read_bytes() == complete


def test_cut_at_every_byte(path: Path) -> None:
    content = written(path, UNITS)
    ends = [0] + [at + 1 for at, byte in enumerate(content) if byte == ord("\n")]
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        # A line is complete once its last brace is there, even without its line end.
        complete = max(1, sum(end - 1 <= size for end in ends[1:]))
        assert reread(path) == dict(list(UNITS.items())[: complete - 1]), size
        assert path.read_bytes() == content[: ends[complete]], size


@pytest.mark.parametrize("flip", [0x01, ord("\n") ^ ord("}"), 0xFF])
def test_a_byte_changed_anywhere(path: Path, flip: int) -> None:
    content = written(path, UNITS)
    last = content.rstrip().rindex(b"\n") + 1
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= flip
        path.write_bytes(damaged)
        try:
            found = reread(path)
        except SensitivityError:
            assert path.read_bytes() == damaged
        else:
            assert at >= last, f"byte {at} was accepted"
            assert found == dict(list(UNITS.items())[:-1]), at
            assert path.read_bytes() == content[:last]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_damaged_line_is_named(path: Path, at: int) -> None:
    lines = written(path, UNITS).splitlines(keepends=True)
    lines[at - 1] = lines[at - 1].replace(b":", b";", 1)
    path.write_bytes(b"".join(lines))
    refused(path, f"line {at} is damaged")


def test_the_repair_is_told(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = written(path, UNITS)
    with caplog.at_level(logging.WARNING, "slim_det"):
        path.write_bytes(content)
        reread(path)
        assert not caplog.records
        path.write_bytes(content[:-5])
        reread(path)
    (record,) = caplog.records
    assert "cut short" in record.getMessage() and str(path) in record.getMessage()


@pytest.mark.parametrize("tail", [b"\0" * 512, b"\n", b'{"key":"x"}\n', b"{"])
def test_a_tail_without_a_checksum_is_dropped(path: Path, tail: bytes) -> None:
    content = written(path, UNITS)
    path.write_bytes(content + tail)
    assert reread(path) == UNITS
    assert path.read_bytes() == content


@pytest.mark.parametrize("content", [b"notes", b"notes\n", b"[]\n", b'{"a":1}\n', b"\xff\xfe\n"])
def test_a_file_of_something_else(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    refused(path, "not a journal")


def test_another_run(path: Path) -> None:
    written(path, UNITS)
    other = {**HEADER, "data_sha256": "1" * 64, "criterion": "fpgm"}
    message = refused(path, "belongs to another run", other)
    assert 'data_sha256 changed (found "000000000000...", expected "111111111111...")' in message
    assert 'criterion changed (found null, expected "fpgm")' in message
    assert "fingerprint" not in message and "delete the file" in message


def test_a_tuple_in_the_header_is_the_list_it_becomes(path: Path) -> None:
    written(path, UNITS)
    assert reread(path, {**HEADER, "ratios": (0.1, 0.5)}) == UNITS


def test_one_key_with_the_same_value_twice(path: Path) -> None:
    lines = written(path, UNITS).splitlines(keepends=True)
    path.write_bytes(b"".join([*lines, lines[1]]))
    assert reread(path) == UNITS
    size = path.stat().st_size
    with Journal(path, HEADER) as journal:
        journal.append("tip", UNITS["tip"])
    assert path.stat().st_size == size


def test_a_cut_line_behind_a_repeated_one(path: Path) -> None:
    lines = written(path, UNITS).splitlines(keepends=True)
    content = b"".join([*lines, lines[1]])
    path.write_bytes(content + lines[2][:-9])
    assert reread(path) == UNITS
    assert path.read_bytes() == content


def test_one_key_with_two_values(path: Path) -> None:
    other = written(path, {"tip": {"0.1": 0.5}}).splitlines(keepends=True)[1]
    path.write_bytes(written(path, UNITS) + other)
    refused(path, "lines 2 and 5 give 'tip' two values")
    content = written(path, UNITS)
    with Journal(path, HEADER) as journal, pytest.raises(SensitivityError, match="another value"):
        journal.append("tip", {"0.1": 0.5})
    assert path.read_bytes() == content


def test_only_one_run_writes(path: Path) -> None:
    with Journal(path, HEADER) as journal:
        refused(path, "another run is writing")
        journal.append("tip", {})
    assert reread(path) == {"tip": {}}


def test_a_refused_journal_is_let_go(path: Path) -> None:
    written(path, UNITS)
    refused(path, "another run", {"fingerprint": ""})
    assert reread(path) == UNITS


def test_not_a_number_is_not_written(path: Path) -> None:
    content = written(path, UNITS)
    with Journal(path, HEADER) as journal, pytest.raises(ValueError):
        journal.append("new", {"0.1": float("nan")})
    assert path.read_bytes() == content


class FullDisk:
    """A file on a disk with room for five more bytes."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, data: bytes) -> int:
        return int(self._stream.write(data[:5]))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def test_a_full_disk_leaves_complete_lines(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = written(path, UNITS)
    with Journal(path, HEADER) as journal:
        monkeypatch.setattr(journal, "_file", FullDisk(journal._file))
        with pytest.raises(SensitivityError, match="No space left"):
            journal.append("new", {})
        assert "new" not in journal.entries
    assert path.read_bytes() == content


def test_a_line_is_on_the_disk_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    real = os.fsync
    with Journal(path, HEADER) as journal:
        monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), real(fd)))
        journal.append("tip", {})
        assert synced == [path.stat().st_size]


@pytest.mark.parametrize("place", ["", "file/journal.jsonl"])
def test_a_place_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SensitivityError, match="cannot be opened"):
        Journal(tmp_path / place, HEADER)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(units=st.dictionaries(st.text(), st.dictionaries(st.text(), VALUES, max_size=3), max_size=4))
def test_any_json_comes_back(path: Path, units: dict[str, dict[str, Any]]) -> None:
    written(path, units)
    assert reread(path) == units

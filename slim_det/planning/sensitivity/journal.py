"""The journal: every finished point of a long measurement on one line, safe against crashes.

`sqlite3` is no replacement: a truncated database is lost completely, a changed byte goes
unnoticed, and journals of earlier versions would still have to be read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
import weakref
import zlib
from pathlib import Path
from typing import Any

from slim_det.core.errors import SensitivityError

logger = logging.getLogger("slim_det")

SCHEMA = "slim_det.sensitivity_journal/1"
_ADVICE = "choose another output, or delete the file to measure anew"
_CHECKSUM = re.compile(rb',"crc":[0-9]+\}')


class Journal:
    """Finished units of work, appended one line at a time and read again after a crash.

    Each line is compact JSON that ends with the CRC-32 of the rest; the first line is the header.
    A last line that a crash cut short is dropped with a warning. Any other damage is an error, and
    the file is left as it is.

    Args:
        path: The file; created, with its folder, if it does not exist.
        header: What is measured on what, as JSON values; the schema is added. Only a run with the
            same header can continue a file.

    Attributes:
        entries: Key -> value of every finished unit, in the order of the file.

    Raises:
        SensitivityError: The file cannot be opened, is damaged, has another header, or is being
            written by another run.
    """

    def __init__(self, path: str | Path, header: dict[str, Any]) -> None:
        self.path = Path(path)
        self.entries: dict[str, dict[str, Any]] = {}
        header_line = _line({"schema": SCHEMA, **header})
        self._file = self._open()
        _close_in_children(self._file)
        try:
            self._lock()
            self._read(header_line)
        except BaseException:
            self._file.close()
            raise

    def append(self, key: str, value: dict[str, Any]) -> None:
        """Record one finished unit; it is on the disk when this returns.

        Raises:
            SensitivityError: The key is recorded with another value, or the disk is full.
            ValueError: The value is not JSON, or holds a number that is not finite.
        """
        line = _line({"key": key, "value": value})
        stored = json.loads(line)["value"]
        if key in self.entries:
            if self.entries[key] != stored:
                raise SensitivityError(
                    f"journal '{self.path}': '{key}' is already recorded with another value"
                )
            return
        self._write(line)
        self.entries[key] = stored

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def _open(self) -> Any:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return open(self.path, "a+b", buffering=0)
        except OSError as error:
            raise SensitivityError(
                f"journal '{self.path}' cannot be opened: {error.strerror}; "
                "expected a file in a writable folder"
            ) from error

    def _lock(self) -> None:
        """Keep other runs out. The lock goes when this process ends, however it ends."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SensitivityError(
                f"journal '{self.path}': another run is writing it; wait until it ends or choose "
                "another output"
            ) from None
        except OSError as error:
            raise SensitivityError(
                f"journal '{self.path}' cannot be locked: {error.strerror}; choose an output on "
                "a local disk"
            ) from error

    def _read(self, header_line: bytes) -> None:
        """Load the entries. The file is only changed after all of it has been checked."""
        self._file.seek(0)
        *lines, rest = self._file.readall().split(b"\n")
        if not lines and header_line.startswith(rest):
            self._mend(0, header_line)  # new, or cut short within its first line
            self._sync_folder()
            return
        self._check_header(_parse(lines[0] if lines else rest), _parse(header_line[:-1]))
        body = lines[1:] + ([rest] if rest else [])
        numbers: dict[str, int] = {}
        for number, line in enumerate(body, 2):
            record = _parse(line)
            if record is not None:
                self._take(record, number, numbers)
            elif line is not body[-1] or _CHECKSUM.search(line):
                raise SensitivityError(
                    f"journal '{self.path}': line {number} is damaged; {_ADVICE}"
                )
            else:
                logger.warning(
                    "journal '%s': its last line was cut short; it is dropped and measured again",
                    self.path,
                )
                self._mend(sum(len(kept) + 1 for kept in [lines[0], *body[:-1]]))
                return
        if rest:
            self._write(b"\n")

    def _check_header(self, found: dict[str, Any] | None, expected: Any) -> None:
        """Refuse the journal of another run."""
        if found is None or found.get("schema") != SCHEMA:
            raise SensitivityError(
                f"'{self.path}' is not a journal, or its line 1 is damaged: expected a header "
                f"with schema '{SCHEMA}'; {_ADVICE}"
            )
        differences = [
            f"{name} changed (found {_short(found.get(name))}, expected "
            f"{_short(expected.get(name))})"
            for name in dict.fromkeys([*expected, *found])
            if found.get(name) != expected.get(name)
        ]
        if differences:
            raise SensitivityError(
                f"journal '{self.path}' belongs to another run: {'; '.join(differences)}; {_ADVICE}"
            )

    def _take(self, record: dict[str, Any], number: int, numbers: dict[str, int]) -> None:
        key, value = record.get("key"), record.get("value")
        if not isinstance(key, str) or not isinstance(value, dict):
            raise SensitivityError(
                f"journal '{self.path}': line {number} holds no key and value; {_ADVICE}"
            )
        if self.entries.setdefault(key, value) != value:
            raise SensitivityError(
                f"journal '{self.path}': lines {numbers[key]} and {number} give '{key}' two "
                f"values; {_ADVICE}"
            )
        numbers.setdefault(key, number)

    def _mend(self, size: int, line: bytes = b"") -> None:
        """Keep the first ``size`` bytes and append ``line``."""
        self._file.truncate(size)
        self._write(line)

    def _write(self, line: bytes) -> None:
        """Write a complete line, or leave the file as it was."""
        size = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(size)
            raise SensitivityError(
                f"journal '{self.path}' cannot be written: {error.strerror}; its lines are kept"
            ) from error

    def _sync_folder(self) -> None:
        """Make the name of a new file as durable as its content."""
        folder = os.open(self.path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _close_in_children(file: Any) -> None:
    """Forked processes, such as the reader's, would hold the lock for as long as they live."""
    reference = weakref.ref(file)

    def close() -> None:
        inherited = reference()
        if inherited is not None:
            inherited.close()

    os.register_at_fork(after_in_child=close)


def _line(record: dict[str, Any]) -> bytes:
    """A record with its checksum at the end."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return f'{text[:-1]},"crc":{zlib.crc32(text.encode())}}}\n'.encode()


def _parse(line: bytes) -> dict[str, Any] | None:
    """The record of a line without its checksum; None if any byte is damaged."""
    try:
        record = json.loads(line)
        if not isinstance(record, dict):
            return None
        record.pop("crc", None)
        return record if _line(record) == line + b"\n" else None
    except (ValueError, RecursionError):
        return None


def _short(value: Any) -> str:
    """A value short enough for an error; a digest is shown by its first digits."""
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:13]}...{text[-1]}"

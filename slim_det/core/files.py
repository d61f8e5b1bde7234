"""Files that are either old or new, never half-written."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from slim_det.core.errors import ConfigError, SlimDetError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp")
"""Suffixes of the images that ppdet's reader takes."""


def write_atomically(files: Mapping[Path, Callable[[str], object]]) -> None:
    """Write several files under temporary names, then rename them all.

    A process killed while writing leaves every old file as it was; killed between two
    renames it leaves only complete files.

    Args:
        files: Target path -> function that writes the content to a given path.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    written: list[tuple[str, Path]] = []
    try:
        for target, write in files.items():
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                handle, temporary = tempfile.mkstemp(
                    prefix=f".{target.name}.", suffix=".tmp", dir=target.parent
                )
            except OSError as error:
                raise ConfigError(
                    f"cannot write '{target}': {error.strerror}; expected a writable folder"
                ) from error
            os.close(handle)
            written.append((temporary, target))
            write(temporary)
            os.chmod(temporary, 0o666 & ~_umask())
        while written:
            temporary, target = written[0]
            os.replace(temporary, target)
            written.pop(0)
    finally:
        for temporary, _ in written:
            Path(temporary).unlink(missing_ok=True)


@contextlib.contextmanager
def staged_folder(target: Path, beside: Path | None = None) -> Iterator[Path]:
    """Fill a temporary folder, which then takes the place of ``target`` in two renames.

    If the block fails, ``target`` stays as it was. A process killed between the two renames
    leaves no ``target``, and the old one complete in a hidden folder.

    Args:
        target: A folder that may exist already.
        beside: The temporary folders are made next to this one, with its name after a dot; by
            default next to ``target``. On the same file system as ``target``.

    Yields:
        The temporary folder.
    """
    beside = beside or target

    def temporary(kind: str) -> Path:
        return Path(tempfile.mkdtemp(prefix=f".{beside.name}.{kind}", dir=beside.parent))

    folders = [temporary("")]
    try:
        yield folders[0]
        folders[0].chmod(0o755)
        if target.exists():
            folders.append(temporary("old."))
            os.replace(target, folders[1] / target.name)
        try:
            os.replace(folders[0], target)
        except OSError:
            if len(folders) == 2:
                os.replace(folders[1] / target.name, target)
            raise
    finally:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def write_text(path: str | Path, text: str) -> None:
    """Write one text file atomically (see `write_atomically`)."""
    write_atomically({Path(path): lambda name: Path(name).write_text(text, encoding="utf-8")})


def write_json(path: str | Path, value: Any) -> None:
    """Write one JSON file atomically, keys in the given order."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(
    path: str | Path,
    kind: str,
    schema: str,
    error: type[SlimDetError],
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,
) -> dict[str, Any]:
    """Read one of our own JSON files, and check only its ``schema``.

    Args:
        path: The file.
        kind: What it should be, for messages: ``plan``.
        schema: The expected value of its key ``schema``.
        error: The type of error to raise.
        pairs: Makes a mapping from its items; a dict by default.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=pairs)
    except FileNotFoundError:
        raise error(f"{kind} '{path}' does not exist") from None
    except (OSError, ValueError, RecursionError) as reason:
        raise error(f"{kind} '{path}' cannot be read: {reason}") from reason
    if not isinstance(data, dict) or data.get("schema") != schema:
        found = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise error(f"'{path}' is not a {kind}: schema is {found!r}, expected '{schema}'")
    return data


def require_writable(folder: str | Path) -> Path:
    """Make sure that files can be created in ``folder``, before any long work begins.

    Args:
        folder: Created with its parents if it does not exist.

    Returns:
        The folder as a `Path`.

    Raises:
        ConfigError: It cannot be created or is not writable.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(
            f"output folder '{folder}' cannot be written to: {error.strerror}; "
            "expected a writable folder"
        ) from error
    return folder


@contextlib.contextmanager
def output_folders(*folders: str | Path) -> Iterator[None]:
    """Check the folders that long work will write to (see `require_writable`) before it begins.

    Folders that were created and are still empty when the work fails are removed again.
    """
    paths = {path for folder in map(Path, folders) for path in (folder, *folder.parents)}
    created = [path for path in paths if not path.exists()]
    try:
        for folder in folders:
            require_writable(folder)
        yield
    except BaseException:
        for path in sorted(created, key=lambda path: len(path.parts), reverse=True):
            with contextlib.suppress(OSError):
                path.rmdir()
        raise


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

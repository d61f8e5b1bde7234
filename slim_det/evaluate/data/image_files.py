"""Checks image files as ppdet's reader, which decodes them by OpenCV, will take them."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image, ImageFile
from tqdm import tqdm

from slim_det.core.errors import DataError
from slim_det.core.files import IMAGE_SUFFIXES
from slim_det.evaluate.data.findings import Findings, Kind

logger = logging.getLogger("slim_det")

FORMATS = ("JPEG", "MPO", "PNG", "BMP", "WEBP", "TIFF")
"""Formats that OpenCV decodes, by Pillow's names, whatever the suffix of the file."""

DECODED = 2000
"""Largest number of images that a command decodes to check them, unless told to."""

MISSING = Kind("missing image", "missing images", "expected a file")
UNREADABLE = Kind(
    "unreadable image", "unreadable images", "expected a complete JPEG, PNG, BMP, WebP or TIFF file"
)

_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)
"""EXIF's tag for the orientation of an image, and its values that swap height and width."""

_CHUNK = 32
"""Images that a thread takes at a time; one each leaves the threads waiting for each other."""

_TAIL = 4096
"""Bytes at the end of a file in which the end marker of its format is looked for."""
_END_MARKERS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND"}

_JPEG = ("JPEG", "MPO")
_DAMAGE, _HARMLESS = ("Corrupt JPEG data", "Premature end"), "extraneous bytes"
"""What libjpeg says of pixels that it has to make up, and of bytes that it skips."""


def decoded_size_hw(path: str | Path) -> tuple[int, int]:
    """Height and width of an image in pixels once it is decoded, from its header.

    Raises:
        DataError: The file is missing or not an image.
    """
    findings = Findings()
    size = check_images([path], findings, decode=False)[0]
    findings.require_none()
    assert size
    return size


def check_images(
    paths: Sequence[str | Path], findings: Findings, decode: bool | None = None
) -> list[tuple[int, int] | None]:
    """Check that files are complete images; a progress bar runs on a terminal.

    Args:
        paths: The files.
        findings: Receives the faults.
        decode: Whether to decode every image; by default if there are at most `DECODED`. Otherwise
            headers are read, and only files that do not end as their format does are decoded.

    Returns:
        Height and width of each in pixels once it is decoded; None for one with a fault.
    """
    if decode is None:
        decode = len(paths) <= DECODED
    chunks = [paths[start : start + _CHUNK] for start in range(0, len(paths), _CHUNK)]
    with _complete_images(), ThreadPoolExecutor(os.cpu_count()) as pool:
        found = pool.map(lambda chunk: [_examine(path, decode) for path in chunk], chunks)
        each = itertools.chain.from_iterable(found)
        bar = tqdm(each, "check", len(paths), unit="image", delay=2.0, disable=None, leave=False)
        sizes: list[tuple[int, int] | None] = []
        for path, result in zip(paths, bar):
            sizes.append(result if isinstance(result, tuple) else None)
            if isinstance(result, str):
                findings.fault(UNREADABLE, f"'{path}' {result}")
            elif result is None:
                findings.fault(MISSING, f"'{path}'")
    return sizes


def find_images(image: str | None, folder: str | None, where: str = "--infer_dir") -> list[str]:
    """Paths of the images given by ``--infer_img`` or ``--infer_dir``, in order.

    A warning counts the other entries of the folder; hidden ones are skipped.

    Args:
        image: One image, which precedes the folder.
        folder: A folder of images.
        where: What names the folder, for messages.

    Raises:
        DataError: Neither is given, or a file is missing or not a complete image.
    """
    if image:
        if folder:
            logger.warning("%s '%s' is left out, because --infer_img is given", where, folder)
        paths = [Path(image)]
        if paths[0].is_file() and paths[0].suffix.lower() not in IMAGE_SUFFIXES:
            raise DataError(f"--infer_img '{image}': expected {', '.join(IMAGE_SUFFIXES)}")
    elif folder:
        paths = _images_of(Path(folder), where)
    else:
        raise DataError("no image is given; add --infer_img FILE or --infer_dir FOLDER")
    require_images(paths)
    return [str(path) for path in paths]


def require_images(paths: Sequence[str | Path]) -> None:
    """Check that files are complete images (see `check_images`).

    Raises:
        DataError: One is not; the message counts them and names the first.
    """
    findings = Findings()
    check_images(paths, findings)
    findings.require_none()


@contextlib.contextmanager
def _complete_images() -> Iterator[None]:
    """Let Pillow refuse images that are cut short, which ppdet turns off, but no large ones."""
    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, None
    try:
        yield
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = before


def _images_of(folder: Path, where: str) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{where} '{folder}' is not a folder")
    found = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    paths = [path for path in found if path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()]
    known = ", ".join(IMAGE_SUFFIXES)
    if not paths:
        raise DataError(f"{where} '{folder}' has no image ({known})")
    others = [path.name + "/" * path.is_dir() for path in found if path not in set(paths)]
    if others:
        kind = Kind("entry is left out", "entries are left out", f"images end in {known}")
        logger.warning("%s '%s': %s", where, folder, kind.line(others))
    return paths


def _examine(path: str | Path, decode: bool) -> tuple[int, int] | str | None:
    """Height and width of an image, or what is wrong with the file; None if there is none."""
    if not os.path.isfile(path):
        return "is not a file" if os.path.exists(path) else None
    try:
        os.fspath(path).encode("utf-8")
        data = Path(path).read_bytes() if decode else b""
        with Image.open(io.BytesIO(data) if decode else path) as image:
            if image.format not in FORMATS:
                return f"is a {image.format} image"
            size = image.height, image.width
            turned = "exif" in image.info and image.getexif().get(_ORIENTATION, 1) in _TURNED
            if image.format not in _END_MARKERS or decode or not _ends(path, image.format):
                data = data or Path(path).read_bytes()
                damage = _jpeg_damage(data) if image.format in _JPEG else None
                if damage:
                    return f"is damaged: {damage}"
                if damage is None:
                    image.load()
                if image.format not in _JPEG:
                    return _opencv_size_hw(data) or "cannot be decoded by OpenCV"
    except UnicodeEncodeError:
        return "has a name that is not UTF-8, which OpenCV cannot open"
    except Exception as error:  # Pillow's plugins raise errors of many types for damaged files
        is_known = not isinstance(error, (OSError, SyntaxError)) or "identify" not in str(error)
        return f"is damaged: {error}" if is_known else "is not an image"
    return (size[1], size[0]) if turned else size


def _jpeg_damage(data: bytes) -> str | None:
    """What libjpeg finds wrong with the bytes of a file; '' for nothing, None if it cannot say.

    Pillow and OpenCV fill in pixels that are missing and say nothing of it.
    """
    try:
        # A side of one pixel lets it compute few, from all of the data.
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8)
    except ValueError as error:  # also of images that it does not know, such as CMYK
        if str(error).startswith(_DAMAGE):
            return "" if _HARMLESS in str(error) else str(error)
        return None
    return ""


def _opencv_size_hw(data: bytes) -> tuple[int, int] | None:
    """Height and width as OpenCV decodes a file, as ppdet does; None if it cannot.

    It does not turn a WebP image as its EXIF says, and does turn a TIFF one.
    """
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    return None if pixels is None else pixels.shape[:2]


def _ends(path: str | Path, kind: str | None) -> bool:
    """Whether a file ends with the end marker of its format."""
    with open(path, "rb") as stream:
        stream.seek(max(0, os.path.getsize(path) - _TAIL))
        return _END_MARKERS.get(kind or "", b"\0" * (_TAIL + 1)) in stream.read()

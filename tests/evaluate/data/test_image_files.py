"""Files are judged by their content, as the reader will take them."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from slim_det.core.errors import DataError
from slim_det.evaluate.data.findings import Findings
from slim_det.evaluate.data.image_files import (
    MISSING,
    UNREADABLE,
    check_images,
    decoded_size_hw,
    find_images,
    require_images,
)

SIZE = (48, 64)


@pytest.fixture
def photo() -> Image.Image:
    """An image whose data are long enough to be cut."""
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8))


def faults(path: Path, decode: bool) -> list[str]:
    findings = Findings()
    sizes = check_images([path], findings, decode)
    places = [*findings.faults.get(UNREADABLE, []), *findings.faults.get(MISSING, [])]
    assert (sizes == [None]) == bool(places)
    return places


@pytest.mark.parametrize("decode", [False, True])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
def test_formats_that_opencv_decodes(
    photo: Image.Image, kind: str, decode: bool, tmp_path: Path
) -> None:
    """Whatever the suffix says; a file that is cut short is found without decoding it too."""
    path = tmp_path / "picture.jpg"
    photo.save(path, kind)
    assert faults(path, decode) == []
    assert decoded_size_hw(path) == SIZE == cv2.imread(str(path)).shape[:2]
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert faults(path, decode)[0].startswith(f"'{path}' is ")


@pytest.mark.parametrize("decode", [False, True])
def test_files_that_are_none(photo: Image.Image, decode: bool, tmp_path: Path) -> None:
    path = tmp_path / "picture.jpg"
    assert faults(path, decode) == [f"'{path}'"]
    for content in (b"", b"text", b"\xff\xd8\xff"):
        path.write_bytes(content)
        assert faults(path, decode) == [f"'{path}' is not an image"]
    photo.save(path, "GIF")
    assert cv2.imread(str(path)) is None
    assert faults(path, decode) == [f"'{path}' is a GIF image"]


def test_bytes_after_the_end(photo: Image.Image, tmp_path: Path) -> None:
    """Some cameras pad their files."""
    path = tmp_path / "padded.jpg"
    photo.save(path)
    for padding in (100, 10_000):
        path.write_bytes(path.read_bytes() + bytes(padding))
        assert faults(path, decode=False) == []


@pytest.mark.parametrize("decode", [False, True])
def test_files_of_other_types(decode: bool, tmp_path: Path) -> None:
    """A pipe would be waited for, and OpenCV ends the process for a name that is not UTF-8."""
    os.mkfifo(tmp_path / "pipe.jpg")
    assert faults(tmp_path / "pipe.jpg", decode) == [f"'{tmp_path}/pipe.jpg' is not a file"]
    assert faults(tmp_path, decode) == [f"'{tmp_path}' is not a file"]
    path = tmp_path / os.fsdecode(b"\xff.jpg")
    Image.new("RGB", (4, 4)).save(path)
    assert faults(path, decode)[0].endswith(
        "has a name that is not UTF-8, which OpenCV cannot open"
    )


@pytest.mark.parametrize("progressive", [False, True])
def test_jpegs_with_missing_pixels_that_end_well(
    photo: Image.Image, progressive: bool, tmp_path: Path
) -> None:
    """Pillow and OpenCV read them in silence, with gray instead."""
    path = tmp_path / "hole.jpg"
    photo.save(path, progressive=progressive)
    data = path.read_bytes()
    assert faults(path, decode=True) == []
    for start, end in ((len(data) // 2, len(data) - 2), (len(data) // 2, len(data) * 3 // 4)):
        path.write_bytes(data[:start] + data[end:])
        assert cv2.imread(str(path)).shape[:2] == SIZE
        assert faults(path, decode=True)[0].startswith(f"'{path}' is damaged: Corrupt JPEG data")
    path.write_bytes(data[:-2] + b"\0\0" + data[-2:])
    assert faults(path, decode=True) == [], "libjpeg skips bytes between the data and the end"


def test_jpegs_of_four_channels(photo: Image.Image, tmp_path: Path) -> None:
    photo.convert("CMYK").save(tmp_path / "print.jpg")
    assert faults(tmp_path / "print.jpg", decode=True) == []


@pytest.mark.parametrize("kind", ["TIFF", "WEBP", "PNG", "JPEG"])
@pytest.mark.parametrize("decode", [False, True])
def test_turned_as_opencv_turns_it(
    photo: Image.Image, kind: str, decode: bool, tmp_path: Path
) -> None:
    """It turns TIFF, whose orientation is no EXIF, and does not turn WebP."""
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    photo.save(path, kind, exif=exif)
    findings = Findings()
    assert check_images([path], findings, decode) == [cv2.imread(str(path)).shape[:2]]
    assert not findings.faults


def test_images_that_only_pillow_decodes(tmp_path: Path) -> None:
    path = tmp_path / "floats.tif"
    Image.fromarray(np.zeros(SIZE, np.float32)).save(path)
    assert faults(path, decode=False) == [f"'{path}' cannot be decoded by OpenCV"]


def test_large_images(tmp_path: Path) -> None:
    """Pillow refuses them as an attack unless told otherwise."""
    Image.new("1", (20_000, 10_000)).save(tmp_path / "large.png")
    assert faults(tmp_path / "large.png", decode=False) == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_size_as_it_is_decoded(photo: Image.Image, orientation: int, tmp_path: Path) -> None:
    path = tmp_path / "turned.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(path, exif=exif)
    assert decoded_size_hw(path) == cv2.imread(str(path)).shape[:2]
    assert decoded_size_hw(path) == (SIZE if orientation < 5 else SIZE[::-1])


def test_all_faults_at_once(photo: Image.Image, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(9)]
    photo.save(paths[4])
    for path in paths[:4] + paths[5:7]:
        path.write_text("text")
    with pytest.raises(DataError) as caught:
        require_images(paths)
    line = str(caught.value)
    assert line.startswith(f"6 unreadable images: '{paths[0]}' is not an image, '{paths[1]}' ")
    assert " and 1 more; expected" in line
    assert f"2 missing images: '{paths[7]}', '{paths[8]}'; expected a file" in line


def test_images_of_a_folder_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Others are counted, except hidden ones; one image wins over the folder, with a line."""
    for name in ("b.PNG", "a.jpg", "c.bmp", "d.tif"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / ".hidden").write_text("")
    (tmp_path / "folder.jpg").mkdir()
    logging.getLogger("slim_det").propagate = True
    found = [Path(path).name for path in find_images(None, str(tmp_path))]
    assert found == ["a.jpg", "b.PNG", "c.bmp"]
    known = ".jpg, .jpeg, .png, .bmp"
    said = f"3 entries are left out: d.tif, folder.jpg/, notes.txt; images end in {known}"
    assert caplog.messages == [f"--infer_dir '{tmp_path}': {said}"]
    assert find_images(str(tmp_path / "c.bmp"), str(tmp_path)) == [str(tmp_path / "c.bmp")]
    assert (
        caplog.messages[1] == f"--infer_dir '{tmp_path}' is left out, because --infer_img is given"
    )
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"1 missing image: '.*gone.jpg'; expected a file"):
        find_images(None, str(tmp_path))

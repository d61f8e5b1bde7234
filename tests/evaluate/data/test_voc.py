"""VOC's lists, labels and annotations, with one fault each."""

from __future__ import annotations

import logging
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from slim_det.core.errors import DataError
from slim_det.evaluate.data import voc
from slim_det.evaluate.data.check import check_dataset
from slim_det.evaluate.data.records import read_voc_records
from tests.support import Config

WIDTH, HEIGHT = 60, 40
BOX = "<xmin>5</xmin><ymin>6</ymin><xmax>25</xmax><ymax>36</ymax>"
OBJECT = f"<object><name>cat</name><difficult>0</difficult><bndbox>{BOX}</bndbox></object>"
SIZE = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two images with one object each; the tests change the first."""
    for name in ("a", "b"):
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / f"{name}.jpg")
        annotate(tmp_path, SIZE + OBJECT, name)
    (tmp_path / "list.txt").write_text("a.jpg a.xml\nb.jpg b.xml\n")
    (tmp_path / "label_list.txt").write_text("cat\ndog\n")
    return tmp_path


def annotate(root: Path, content: str, name: str = "a") -> None:
    (root / f"{name}.xml").write_text(f"<annotation>{content}</annotation>")


def check(root: Path) -> int:
    settings = {"name": "VOCDataSet", "dataset_dir": str(root), "anno_path": "list.txt"}
    return check_dataset(Config(TrainDataset=settings, num_classes=2), "TrainDataset")


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        check(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def records(root: Path, **changes: Any) -> SimpleNamespace:
    """A data set as ppdet's, parsed."""
    dataset = SimpleNamespace(
        dataset_dir=str(root), image_dir="", anno_path="list.txt", label_list="label_list.txt",
        data_fields=["image", "gt_bbox", "gt_class", "difficult"], sample_num=-1,
        allow_empty=False, **changes,
    )  # fmt: skip
    dataset._sample_empty = lambda empty, num: empty
    read_voc_records(dataset)
    return dataset


def test_sound(root: Path) -> None:
    assert check(root) == 2
    dataset = records(root)
    assert dataset.cname2cid == {"cat": 0, "dog": 1}
    first = dataset.roidbs[0]
    assert first["gt_bbox"].tolist() == [[5, 6, 25, 36]] and first["gt_bbox"].dtype == np.float32
    assert first["gt_class"].tolist() == [[0]] and first["difficult"].tolist() == [[0]]
    assert (first["h"], first["w"], first["im_id"].tolist()) == (HEIGHT, WIDTH, [0])
    assert first["im_file"] == str(root / "a.jpg")


def test_same_records_as_ppdet(bccd: Path, tmp_path: Path) -> None:
    """ppdet reads them in a process without slim_det."""
    settings: dict[str, Any] = {
        "dataset_dir": str(bccd),
        "image_dir": "",
        "anno_path": "val.txt",
        "label_list": "label_list.txt",
        "data_fields": ["image", "gt_bbox", "gt_class", "difficult", "gt_score"],
        "sample_num": 40,
    }
    script = (
        "import pickle, sys; from ppdet.data.source.voc import VOCDataSet; "
        f"dataset = VOCDataSet(**{settings!r}); dataset.parse_dataset(); "
        "pickle.dump(dataset.roidbs, open(sys.argv[1], 'wb'))"
    )
    subprocess.run([sys.executable, "-c", script, tmp_path / "theirs"], check=True, timeout=120)
    theirs = pickle.loads((tmp_path / "theirs").read_bytes())
    dataset = SimpleNamespace(**settings, allow_empty=False)
    read_voc_records(dataset)
    assert len(dataset.roidbs) == len(theirs) == 40
    for own, other in zip(dataset.roidbs, theirs):
        assert own.keys() == other.keys()
        for key, value in other.items():
            np.testing.assert_array_equal(own[key], value, err_msg=key)
            assert getattr(own[key], "dtype", None) == getattr(value, "dtype", None)


def changed(tag: str, text: str) -> str:
    """The object with another text in one tag; None removes it."""
    start, _, rest = OBJECT.partition(f"<{tag}>")
    return f"{start}{text}{rest.partition(f'</{tag}>')[2]}"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (SIZE + changed("bndbox", ""), "1 missing 'bndbox': {xml} object 1 bndbox; expected"),
        (SIZE + changed("xmin", ""), "1 missing 'xmin': {xml} object 1 bndbox.xmin; expected"),
        (SIZE + changed("name", ""), "1 missing 'name': {xml} object 1 name; expected"),
        (SIZE + changed("name", "<name> </name>"), "1 invalid 'name': {xml} object 1 name: ''"),
        (SIZE + changed("xmin", "<xmin>abc</xmin>"), "1 invalid 'xmin': {xml} object 1 bndbox.xmin: 'abc'"),  # noqa: E501
        (SIZE + changed("ymax", "<ymax>nan</ymax>"), "1 invalid 'ymax': {xml} object 1 bndbox.ymax: 'nan'"),  # noqa: E501
        (SIZE + changed("ymax", "<ymax>inf</ymax>"), "1 invalid 'ymax': {xml} object 1 bndbox.ymax: 'inf'"),  # noqa: E501
        (SIZE + changed("difficult", "<difficult>no</difficult>"), "1 invalid 'difficult'"),
        (SIZE + changed("xmin", "<xmin>26</xmin>"), "1 reversed box: {xml} object 1 (cat) 26 6 25 36 of 60x40"),  # noqa: E501
        (SIZE + changed("xmin", "<xmin>25</xmin>"), "1 box without area: {xml} object 1 (cat) 25 6 25 36"),  # noqa: E501
        (SIZE + changed("name", "<name>cot</name>"), "1 object of an unknown class: {xml} object 1 'cot'; did you mean 'cat'?"),  # noqa: E501
        ("<size><width>30</width><height>20</height></size>" + OBJECT, "1 annotation for another image size: {xml} 30x20, '{root}/a.jpg' is 60x40"),  # noqa: E501
        ("<size><width>30</width></size>" + OBJECT, "1 missing 'height': {xml} size.height"),
        ("<size><width>x</width><height>20</height></size>" + OBJECT, "1 invalid 'width': {xml} size.width: 'x'"),  # noqa: E501
        (SIZE + changed("difficult", "<difficult>2</difficult>"), "1 invalid 'difficult': {xml} object 1 difficult: '2'; expected 0 or 1"),  # noqa: E501
        (SIZE + changed("difficult", f"<difficult>{10**23}</difficult>"), "1 invalid 'difficult'"),
        (SIZE + OBJECT + f"<id>{10**22}</id>", "1 invalid 'id': {xml} id: "),
        ("<object>", "1 annotation that is not XML: {xml} mismatched tag"),
        (SIZE + f"<objects>{OBJECT}</objects>", "1 tag that is not where VOC has it: {xml} <object>; expected"),  # noqa: E501
        (SIZE + OBJECT.replace("object", "Object"), "1 tag that is not where VOC has it: {xml} <Object>"),  # noqa: E501
        (SIZE + OBJECT.replace("</object>", OBJECT + "</object>"), "1 tag that is not where VOC has it: {xml} <object>"),  # noqa: E501
        (SIZE + SIZE + OBJECT, "1 tag that is not clear: {xml} size; expected it once, with text"),
        (SIZE + OBJECT + changed("name", "<name>cat</name><name>dog</name>"), "1 tag that is not clear: {xml} object 2 name"),  # noqa: E501
        (SIZE + changed("bndbox", f"<bndbox>{BOX}</bndbox>" * 2), "1 tag that is not clear: {xml} object 1 bndbox"),  # noqa: E501
        (SIZE + changed("xmin", "<xmin>5</xmin><xmin>6</xmin>"), "1 tag that is not clear: {xml} object 1 bndbox.xmin"),  # noqa: E501
        (SIZE + changed("xmin", "<xmin>2<b>9</b></xmin>"), "1 tag that is not clear: {xml} object 1 bndbox.xmin"),  # noqa: E501
        (SIZE + changed("name", "<name>c\nat</name>"), "1 object of an unknown class: {xml} object 1 'c\\nat'"),  # noqa: E501
    ],
)  # fmt: skip
def test_faults(root: Path, content: str, said: str) -> None:
    """One line with file, object, value and what was expected; the reader refuses it as well."""
    annotate(root, content)
    wanted = said.format(xml=f"'{root}/a.xml'", root=root)
    assert f"TrainDataset: {wanted}" in refusal(root)
    if "another image size" not in said:  # the reader does not open images
        with pytest.raises(DataError, match="^'.*list.txt': 1 "):
            records(root)


def test_outside(root: Path) -> None:
    far = BOX.replace("5<", "65<").replace(">25", ">75")
    annotate(root, SIZE + OBJECT.replace(BOX, far))
    assert "1 box outside its image: " in refusal(root)


def test_every_fault_is_counted_and_five_are_named(root: Path) -> None:
    annotate(root, SIZE + changed("xmin", "") * 6 + changed("name", "<name>cow</name>"))
    line = refusal(root)
    assert line.count("bndbox.xmin") == 5
    assert "6 missing 'xmin': " in line and " and 1 more; expected a number of pixels" in line


@pytest.mark.parametrize(
    ("content", "said", "boxes"),
    [
        (OBJECT, None, [[5, 6, 25, 36]]),
        ("<size><width>0</width><height>0</height></size>" + OBJECT, "the size is read from the image", [[5, 6, 25, 36]]),  # noqa: E501
        (SIZE + changed("difficult", "<difficult></difficult>"), "these objects count as not difficult", [[5, 6, 25, 36]]),  # noqa: E501
        (SIZE + changed("difficult", ""), None, [[5, 6, 25, 36]]),
        (SIZE + changed("xmax", "<xmax>61</xmax>"), "they are cut off at its edge", [[5, 6, 59, 36]]),  # noqa: E501
        (SIZE + changed("xmax", "<xmax>60</xmax>"), None, [[5, 6, 59, 36]]),
        (SIZE + changed("xmin", "<xmin>-1</xmin>"), "they are cut off at its edge", [[0, 6, 25, 36]]),  # noqa: E501
        (SIZE + OBJECT + OBJECT.replace(BOX, BOX.replace("25", "5").replace("36", "6")), "they have no area and are left out", [[5, 6, 25, 36]]),  # noqa: E501
    ],
)  # fmt: skip
def test_remarks(
    root: Path, content: str, said: str | None, boxes: list, caplog: pytest.LogCaptureFixture
) -> None:
    """Read in another way than written, with a line that says so."""
    annotate(root, content)
    logging.getLogger("slim_det").propagate = True
    assert check(root) == 2
    assert (said in caplog.text) if said else not caplog.messages
    dataset = records(root)
    assert dataset.roidbs[0]["gt_bbox"].tolist() == boxes
    assert dataset.roidbs[0]["difficult"].tolist() == [[0]]
    assert dataset.roidbs[0]["h"] == HEIGHT


def test_images_without_objects_come_last(root: Path) -> None:
    annotate(root, SIZE)
    assert [record["im_file"] for record in records(root).roidbs] == [str(root / "b.jpg")]
    dataset = records(root)
    dataset.allow_empty = True
    read_voc_records(dataset)
    assert [record["im_id"].item() for record in dataset.roidbs] == [1, 0]
    assert dataset.roidbs[1]["gt_bbox"].shape == (0, 4)


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "gb2312", "utf-16"])
def test_declared_encodings(root: Path, encoding: str) -> None:
    name = {"latin-1": "chaté", "gb2312": "猫"}.get(encoding, "猫é")
    content = f'<?xml version="1.0" encoding="{encoding}"?><annotation>{SIZE}{OBJECT}</annotation>'
    (root / "a.xml").write_bytes(content.replace("cat", name).encode(encoding))
    (root / "label_list.txt").write_text(f"cat\n{name}\n", encoding="utf-8")
    assert check(root) == 2
    assert records(root).roidbs[0]["gt_class"].tolist() == [[1]]


@pytest.mark.parametrize(
    ("content", "tag"),
    [
        (f'<annotation xmlns="urn:voc">{SIZE}{OBJECT}</annotation>', "{urn:voc}object"),
        (f"<voc><annotation>{SIZE}{OBJECT}</annotation></voc>", "object"),
        ("<html><body>404 Not Found</body></html>", "html"),
    ],
)
def test_xml_of_another_kind(root: Path, content: str, tag: str) -> None:
    """It is no image without objects."""
    (root / "a.xml").write_text(content)
    assert f"'{root}/a.xml' <{tag}>" in refusal(root)
    (root / "a.xml").write_text(f"<image>{SIZE}{OBJECT}</image>")
    assert check(root) == 2, "the name of the root alone is no fault"


def test_other_encoding_than_declared(root: Path) -> None:
    content = '<?xml version="1.0" encoding="utf-8"?><annotation/>'
    (root / "a.xml").write_bytes(content.encode().replace(b"<ann", "<é".encode("latin-1")))
    assert "1 annotation that is not XML" in refusal(root)
    (root / "a.xml").write_text(content.replace("utf-8", "klingon"))
    assert "unknown encoding: klingon" in refusal(root)


def test_lists_and_labels(root: Path) -> None:
    """Byte order marks and blank lines at the end are no fault."""
    for name in ("list.txt", "label_list.txt"):
        content = (root / name).read_bytes()
        (root / name).write_bytes(b"\xef\xbb\xbf" + content + b"\n \n")
    assert check(root) == 2
    assert len(records(root).roidbs) == 2
    labels = root / "label_list.txt"
    labels.write_text("cat\n\ndog\n")
    assert f"'{labels}' line 2 is blank; expected the name of a class" in refusal(root)
    labels.write_text("cat\ncat\n")
    assert f"'{labels}' line 2: 'cat' is the name of line 1 too" in refusal(root)
    labels.write_bytes("chaté\ndog".encode("latin-1"))
    assert f"'{labels}' is not UTF-8 text" in refusal(root)


def test_names_with_spaces(root: Path) -> None:
    shutil.copy(root / "a.jpg", root / "a b.jpg")
    (root / "list.txt").write_text("a b.jpg a.xml\nb.jpg\nb.jpg b.xml\n")
    line = refusal(root)
    assert f"2 lines that are not 'IMAGE XML': '{root}/list.txt' line 1: 'a b.jpg a.xml'" in line
    assert "line 2: 'b.jpg'; expected two names, and names without spaces" in line


def test_only_the_first_images(root: Path) -> None:
    findings = voc.Findings()
    assert len(voc.read_list(root / "list.txt", root, findings, 1)) == 1
    assert len(records(root).roidbs) == 2

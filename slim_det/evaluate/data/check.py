"""Checks a data set before it is used: folders, annotations, classes, images."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slim_det.core.errors import DataError, nearest
from slim_det.evaluate.data import coco, faces, stamp, voc
from slim_det.evaluate.data.findings import Findings, Kind
from slim_det.evaluate.data.image_files import check_images

logger = logging.getLogger("slim_det")

METRICS = {"COCODataSet": "COCO", "VOCDataSet": "VOC", "WIDERFaceDataSet": "WiderFace"}

EMPTY_LEFT_OUT = Kind(
    "image without objects", "images without objects", "left out of the training (allow_empty)"
)
EMPTY_TRAINED = Kind("image without objects", "images without objects", "trained as background")
EMPTY_EVALUATED = Kind(
    "image without objects", "images without objects", "boxes found in them count as false"
)


@dataclass
class Contents:
    """What a data set holds.

    Attributes:
        kind: ppdet's name of the data set's class.
        files: All files that were read.
        images: Those of them that are images.
        objects: Class -> number of objects.
        findings: Faults and remarks.
        where: What precedes a line of findings: the file that all of them are in, if it is one.
    """

    kind: str
    files: list[Path]
    images: list[Path]
    objects: Counter[str]
    findings: Findings
    where: str = ""

    def lines(self, kinds: Mapping[Kind, list[str]]) -> list[str]:
        """A line for each kind of the faults, or of the remarks."""
        return [self.where + kind.line(places) for kind, places in kinds.items()]


@dataclass(frozen=True)
class _Source:
    """Where a data set is, as its settings say."""

    name: str
    kind: str
    root: Path
    images: Path
    annotations: Path
    labels: Path
    ground_truth: str | None
    most: int
    keeps_empty: bool
    num_classes: int


def check_dataset(cfg: Any, name: str) -> int:
    """Check a data set of the configuration (COCO, VOC or WIDER FACE), and log remarks on it.

    A data set that passed is not read again while its files have the same sizes and times.

    Args:
        cfg: ppdet's configuration.
        name: ``TrainDataset`` or ``EvalDataset``.

    Returns:
        The number of images; 0 for a data set of another kind.

    Raises:
        DataError: A folder or file is missing, there are no annotations, annotations or images
            are not valid (see `inspect_dataset`), the classes do not match ``num_classes``,
            ``metric`` does not fit the data set, or the WIDER FACE ground truth does not belong to
            these images.
    """
    source = _source_of(cfg, name)
    if source is None:
        return 0
    passed = stamp.read(source)
    if passed is None:
        contents = _inspect(source)
        contents.findings.require_none(f"{name}: {contents.where}")
        remarks = contents.lines(contents.findings.remarks)
        passed = stamp.Passed(len(contents.images), remarks)
        stamp.write(source, passed, contents.files)
    for remark in passed.remarks:
        logger.warning("%s: %s", name, remark)
    return passed.num_images


def inspect_dataset(cfg: Any, name: str) -> Contents | None:
    """Read all of a data set, and decode every image.

    Args:
        cfg: ppdet's configuration.
        name: ``TrainDataset`` or ``EvalDataset``.

    Returns:
        What it holds, with faults and remarks; None for a data set of another kind.

    Raises:
        DataError: It cannot be read at all, or does not fit the configuration.
    """
    source = _source_of(cfg, name)
    return None if source is None else _inspect(source, decode=True)


def _source_of(cfg: Any, name: str) -> _Source | None:
    settings = cfg[name]
    fields = settings if isinstance(settings, dict) else vars(settings)
    kind = fields.get("name") or type(settings).__name__
    if name == "EvalDataset" and cfg.metric != METRICS.get(kind, cfg.metric):
        raise DataError(f"{name}: metric {cfg.metric} does not fit a {kind}; use {METRICS[kind]}")
    root = Path(fields.get("dataset_dir") or "")
    if not root.is_dir():
        raise DataError(f"{name}: dataset_dir '{root}' does not exist")
    images = root / (fields.get("image_dir") or "")
    if not images.is_dir():
        found = [p.name for p in root.iterdir() if p.is_dir()]
        raise DataError(f"{name}: image_dir '{images}' does not exist{nearest(images.name, found)}")
    if not fields.get("anno_path"):
        raise DataError(f"{name}: no anno_path is given; expected an annotation file")
    annotations = root / fields["anno_path"]
    if not annotations.is_file():
        raise DataError(f"{name}: anno_path '{annotations}' does not exist")
    if kind not in METRICS:
        return None
    return _Source(
        name,
        kind,
        root,
        images,
        annotations,
        root / (fields.get("label_list") or "label_list.txt"),
        cfg.get("widerface_ground_truth") if name == "EvalDataset" else None,
        fields.get("sample_num") or -1,
        bool(fields.get("allow_empty")),
        cfg.num_classes,
    )


def _inspect(source: _Source, decode: bool | None = None) -> Contents:
    inspect: Callable[[_Source, bool | None], Contents] = {
        "COCODataSet": _inspect_coco,
        "VOCDataSet": _inspect_voc,
        "WIDERFaceDataSet": _inspect_faces,
    }[source.kind]
    try:
        contents = inspect(source, decode)
    except DataError as error:
        raise DataError(f"{source.name}: {error}") from error
    if not contents.findings.faults and not sum(contents.objects.values()):
        raise DataError(f"{source.name}: '{source.annotations}' has no object that counts")
    return contents


def _inspect_coco(source: _Source, decode: bool | None) -> Contents:
    findings = Findings()
    file = coco.read_coco(source.annotations, findings)
    where = f"'{source.annotations}': "
    if file is None:
        return Contents(source.kind, [], [], Counter(), findings, where)
    _require_classes(source, source.annotations, file.classes)
    paths = [source.images / entry["file_name"] for entry in file.images]
    coco.check_boxes(file, check_images(paths, findings, decode), findings)
    if not findings.faults:
        _remark_empty(source, coco.images_without_objects(file), findings)
    objects = coco.countable_objects(file)
    return Contents(source.kind, [source.annotations, *paths], paths, objects, findings, where)


def _inspect_voc(source: _Source, decode: bool | None) -> Contents:
    findings = Findings()
    if not source.labels.is_file():
        raise DataError(f"label_list '{source.labels}' does not exist")
    classes = voc.read_labels(source.labels)
    _require_classes(source, source.labels, classes)
    images = voc.read_list(source.annotations, source.images, findings, source.most)
    voc.check_classes(images, classes, findings)
    paths = [image.file for image in images]
    objects: Counter[str] = Counter()
    for image, size in zip(images, check_images(paths, findings, decode)):
        if size:
            _, kept = voc.check_boxes(image, size, findings)
            objects.update(image.names[i] for i in kept)
    _remark_empty(source, [str(image.xml) for image in images if not image.names], findings)
    read = [source.annotations, source.labels, *(image.xml for image in images), *paths]
    return Contents(source.kind, read, paths, objects, findings)


def _inspect_faces(source: _Source, decode: bool | None) -> Contents:
    findings = Findings()
    _require_classes(source, source.annotations, ["face"])
    found = faces.read_faces(source.annotations, source.images, source.most)
    sizes = check_images(found.files, findings, decode)
    faces.check_boxes(found, sizes, findings)
    read = [source.annotations, *found.files]
    if source.ground_truth:
        faces.check_ground_truth(found, source.ground_truth)
        read += faces.files_of(source.ground_truth)
    objects = Counter({"face": sum(map(len, found.content.rows))})
    where = f"'{source.annotations}': "
    return Contents(source.kind, read, found.files, objects, findings, where)


def _require_classes(source: _Source, path: Path, classes: Sequence[str]) -> None:
    if len(classes) != source.num_classes:
        raise DataError(
            f"'{path}' has {len(classes)} classes ({', '.join(classes[:5])}"
            f"{', ...' if len(classes) > 5 else ''}), num_classes is {source.num_classes}"
        )


def _remark_empty(source: _Source, names: Sequence[str], findings: Findings) -> None:
    for name in names:
        if source.name == "EvalDataset":
            findings.remark(EMPTY_EVALUATED, f"'{name}'")
        else:
            findings.remark(EMPTY_TRAINED if source.keeps_empty else EMPTY_LEFT_OUT, f"'{name}'")

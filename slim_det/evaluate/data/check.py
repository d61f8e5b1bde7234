"""Checks a data set before it is used: folders, annotations, classes, images."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Optional

from pydantic import Field, Strict

from slim_det.core.errors import DataError, nearest
from slim_det.core.schema import Switch, validated
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
REPEATED = Kind("image that occurs again", "images that occur again", "expected each once")
REPEATED_TRAINED = Kind(
    "image that occurs again", "images that occur again", "a training sees them more often"
)

_VOC_FIELDS = ("gt_bbox", "gt_class", "difficult")

_Name = Annotated[Optional[str], Field(description="a name, as text")]


@dataclass
class _Settings:
    """Settings of a data set that say what is read."""

    dataset_dir: _Name = None
    image_dir: _Name = None
    anno_path: _Name = None
    label_list: _Name = "label_list.txt"
    sample_num: Annotated[
        int, Strict(), Field(ge=-1, description="a whole number of images, or -1 for all")
    ] = -1
    allow_empty: Switch = False
    data_fields: Annotated[list[str], Field(description="a list of names")] = field(
        default_factory=lambda: ["image"]
    )


@dataclass
class Contents:
    """What a data set holds.

    Attributes:
        kind: ppdet's name of the data set's class.
        classes: Names of the classes, in order.
        files: All files that were read.
        images: Those of them that are images.
        objects: Class -> number of objects that count for its use.
        findings: Faults and remarks.
        where: What precedes a line of findings: the file that all of them are in, if it is one.
    """

    kind: str
    classes: list[str]
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
    labels: Path | None
    ground_truth: str | None
    most: int
    keeps_empty: bool
    num_classes: int

    @property
    def trains(self) -> bool:
        """Whether it is there for a training."""
        return self.name != "EvalDataset"


def check_dataset(cfg: Any, name: str, like: Mapping[str, Sequence[str]] | None = None) -> int:
    """Check a data set of the configuration (COCO, VOC or WIDER FACE), and log remarks on it.

    A data set that passed is not read again while its files have the same sizes and times.

    Args:
        cfg: ppdet's configuration.
        name: ``TrainDataset`` or ``EvalDataset``.
        like: What has the classes that are expected -> these classes.

    Returns:
        The number of images; 0 for a data set of another kind.

    Raises:
        ConfigError: A setting is not valid.
        DataError: A folder or file is missing, there are no annotations, annotations or images
            are not valid (see `inspect_dataset`), the classes do not match ``num_classes``,
            ``metric`` does not fit the data set, or the WIDER FACE ground truth does not belong to
            these images.
    """
    passed = _pass(cfg, name)
    if passed is None:
        return 0
    require_same_classes({**(like or {}), name: passed.classes})
    return passed.num_images


def check_training(cfg: Any, evaluates: bool) -> None:
    """Check ``TrainDataset``, and the data set that the training is evaluated on (`check_dataset`).

    Raises:
        DataError: As `check_dataset`, or the classes of both are not the same.
    """
    names = ("TrainDataset", "EvalDataset")[: 1 + evaluates]
    require_same_classes({name: p.classes for name in names if (p := _pass(cfg, name))})


def require_same_classes(classes: Mapping[str, Sequence[str]]) -> None:
    """Check that data sets have the same classes in the same order.

    Args:
        classes: Data set -> its classes.

    Raises:
        DataError: A class has another name, or another place.
    """
    for (first, own), (second, other) in zip(list(classes.items()), list(classes.items())[1:]):
        if len(own) != len(other):
            raise DataError(
                f"{first} has {len(own)} classes ({_some(own)}), {second} {len(other)} "
                f"({_some(other)}); expected the same classes"
            )
        for number, (left, right) in enumerate(zip(own, other), start=1):
            if left != right:
                raise DataError(
                    f"class {number} of {second} is '{right}', that of {first} is '{left}'; "
                    "expected the same classes in the same order"
                )


def _pass(cfg: Any, name: str) -> stamp.Passed | None:
    """What the check of a data set without faults finds, now or earlier; its remarks are logged."""
    source = _source_of(cfg, name)
    if source is None:
        return None
    passed = stamp.read(source)
    if passed is None:
        contents = _inspect(source)
        contents.findings.require_none(f"{name}: {contents.where}")
        remarks = contents.lines(contents.findings.remarks)
        passed = stamp.Passed(len(contents.images), remarks, contents.classes)
        stamp.write(source, passed, contents.files)
    for remark in passed.remarks:
        logger.warning("%s: %s", name, remark)
    return passed


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
    given = cfg[name]
    if isinstance(given, (str, int, float, list)):
        raise DataError(f"{name}: {given!r} is not valid; expected the settings of a data set")
    fields = given if isinstance(given, dict) else vars(given)
    settings = validated(_Settings, fields, f"{name}.")
    kind = fields.get("name") or type(given).__name__
    if name == "EvalDataset" and cfg.metric != METRICS.get(kind, cfg.metric):
        raise DataError(f"{name}: metric {cfg.metric} does not fit a {kind}; use {METRICS[kind]}")
    root = Path(settings.dataset_dir or "")
    _require(root.is_dir(), root, f"{name}: dataset_dir", "a folder")
    images = root / (settings.image_dir or "")
    found = [p.name for p in root.iterdir() if p.is_dir()]
    _require(images.is_dir(), images, f"{name}: image_dir", "a folder", found)
    if not settings.anno_path:
        raise DataError(f"{name}: no anno_path is given; expected an annotation file")
    annotations = root / settings.anno_path
    _require(annotations.is_file(), annotations, f"{name}: anno_path", "a file")
    if kind not in METRICS:
        return None
    lacking = [key for key in _VOC_FIELDS if key not in settings.data_fields]
    if name == "EvalDataset" and kind == "VOCDataSet" and lacking:
        raise DataError(
            f"{name}: data_fields lacks {', '.join(lacking)}, which the metric compares with"
        )
    most = settings.sample_num or -1
    if kind == "COCODataSet" and name == "EvalDataset" and most > 0:
        raise DataError(
            f"{name}: sample_num {most} is not valid; expected -1, because pycocotools counts the "
            "objects of all images"
        )
    return _Source(
        name,
        kind,
        root,
        images,
        annotations,
        root / settings.label_list if settings.label_list else None,
        cfg.get("widerface_ground_truth") if name == "EvalDataset" else None,
        most,
        settings.allow_empty,
        cfg.num_classes,
    )


def _require(fits: bool, path: Path, what: str, kind: str, others: Sequence[str] = ()) -> None:
    if not fits:
        wrong = f"is not {kind}" if path.exists() else "does not exist"
        raise DataError(f"{what} '{path}' {wrong}{nearest(path.name, others)}")


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
        what = "object that counts" if contents.images else "image"
        raise DataError(f"{source.name}: '{source.annotations}' has no {what}")
    return contents


def _inspect_coco(source: _Source, decode: bool | None) -> Contents:
    findings = Findings()
    file = coco.read_coco(source.annotations, findings)
    where = f"'{source.annotations}': "
    if file is None:
        return Contents(source.kind, [], [], [], Counter(), findings, where)
    _require_classes(source, source.annotations, file.classes)
    paths = [source.images / entry["file_name"] for entry in file.images]
    coco.check_boxes(file, check_images(paths, findings, decode), findings)
    _find_repeated(source, paths, findings)
    if not findings.faults:
        _remark_empty(source, coco.images_without_objects(file, source.trains), findings)
    objects = coco.countable_objects(file, source.trains)
    files = [source.annotations, *paths]
    return Contents(source.kind, file.classes, files, paths, objects, findings, where)


def _inspect_voc(source: _Source, decode: bool | None) -> Contents:
    findings = Findings()
    if source.labels:
        _require(source.labels.is_file(), source.labels, "label_list", "a file")
    classes = voc.class_names(source.labels)
    _require_classes(source, source.labels or "VOC", classes)
    images = voc.read_list(source.annotations, source.images, findings, source.most)
    voc.check_classes(images, classes, findings)
    paths = [image.file for image in images]
    _find_repeated(source, paths, findings)
    objects: Counter[str] = Counter()
    for image, size in zip(images, check_images(paths, findings, decode)):
        if size:
            _, kept = voc.check_boxes(image, size, findings)
            counted = [i for i in kept if source.trains or not image.difficult[i]]
            objects.update(image.names[i] for i in counted)
    _remark_empty(source, [str(image.xml) for image in images if not image.names], findings)
    read = [source.annotations, *(image.xml for image in images), *paths]
    read += [source.labels] if source.labels else []
    return Contents(source.kind, classes, read, paths, objects, findings)


def _inspect_faces(source: _Source, decode: bool | None) -> Contents:
    findings = Findings()
    _require_classes(source, source.annotations, ["face"])
    found = faces.read_faces(source.annotations, source.images, source.most)
    sizes = check_images(found.files, findings, decode)
    faces.check_boxes(found, sizes, findings)
    names = [name for name, rows in zip(found.content.files, found.content.rows) if not len(rows)]
    _remark_empty(source, names, findings, keeps_empty=True)
    read = [source.annotations, *found.files]
    if source.ground_truth:
        faces.check_ground_truth(found, source.ground_truth)
        read += faces.files_of(source.ground_truth)
    objects = Counter(
        {"face": sum(int((rows[:, 2:4] > 0).all(1).sum()) for rows in found.content.rows)}
    )
    where = f"'{source.annotations}': "
    return Contents(source.kind, ["face"], read, found.files, objects, findings, where)


def _find_repeated(source: _Source, paths: Sequence[Path], findings: Findings) -> None:
    """Images that occur again: an evaluation would count them twice."""
    for name, count in Counter(os.path.normpath(path) for path in paths).items():
        if count > 1 and source.trains:
            findings.remark(REPEATED_TRAINED, f"'{name}' ({count} times)")
        elif count > 1:
            findings.fault(REPEATED, f"'{name}' ({count} times)")


def _require_classes(source: _Source, path: Path | str, classes: Sequence[str]) -> None:
    if len(classes) != source.num_classes:
        raise DataError(
            f"'{path}' has {len(classes)} classes ({_some(classes)}), num_classes is "
            f"{source.num_classes}"
        )


def _some(classes: Sequence[str]) -> str:
    return ", ".join([*classes[:5], *(["..."] if len(classes) > 5 else [])])


def _remark_empty(
    source: _Source, names: Sequence[str], findings: Findings, keeps_empty: bool = False
) -> None:
    trained = EMPTY_TRAINED if keeps_empty or source.keeps_empty else EMPTY_LEFT_OUT
    for name in names:
        findings.remark(trained if source.trains else EMPTY_EVALUATED, f"'{name}'")

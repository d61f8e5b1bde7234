"""Makes ppdet's records from annotations, so that what was checked is what is read."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slim_det.evaluate.data import faces, voc
from slim_det.evaluate.data.findings import Findings
from slim_det.evaluate.data.image_files import MISSING, check_images, decoded_size_hw


def read_voc_records(dataset: Any) -> None:
    """`VOCDataSet.parse_dataset`: the same records from `slim_det.evaluate.data.voc`.

    Raises:
        DataError: The list or an annotation is not valid.
    """
    root = Path(dataset.dataset_dir)
    path, folder = root / dataset.anno_path, root / dataset.image_dir
    classes = voc.class_names(root / dataset.label_list if dataset.label_list else None)
    findings = Findings()
    images = voc.read_list(path, folder, findings, dataset.sample_num)
    voc.check_classes(images, classes, findings)
    findings.require_none(f"'{path}': ")
    records: list[dict[str, Any]] = []
    empty: list[dict[str, Any]] = []
    for number, image in enumerate(images):
        if not image.file.is_file():
            findings.fault(MISSING, f"'{image.file}'")
            continue
        record = _voc_record(dataset, image, number, classes, findings)
        (records if image.names else empty).append(record)
    findings.require_none(f"'{path}': ")
    if dataset.allow_empty and empty:
        records += dataset._sample_empty(empty, len(records))
    dataset.roidbs = records
    dataset.cname2cid = {name: i for i, name in enumerate(classes)}


def _voc_record(
    dataset: Any, image: voc.VocImage, number: int, classes: list[str], findings: Findings
) -> dict[str, Any]:
    stated = image.size_hw
    size = stated if stated and min(stated) > 0 else decoded_size_hw(image.file)
    boxes_xyxy, kept = voc.check_boxes(image, size, findings)
    labels = [classes.index(image.names[i]) for i in kept]
    truth = {
        "gt_class": np.array(labels, np.int32).reshape(-1, 1),
        "gt_score": np.ones((len(kept), 1), np.float32),
        "gt_bbox": boxes_xyxy,
        "difficult": image.difficult[kept].reshape(-1, 1),
    }
    identity = np.array([number if image.id is None else image.id])
    return _record(
        dataset, {"im_file": os.fspath(image.file), "im_id": identity, **_size(size)}, truth
    )


def read_face_records(dataset: Any) -> None:
    """`WIDERFaceDataSet.parse_dataset`: the same records, with faces that end at the image's edge.

    Raises:
        DataError: The annotations are not valid.
    """
    root = Path(dataset.dataset_dir)
    path = root / dataset.anno_path
    found = faces.read_faces(path, root / dataset.image_dir, dataset.sample_num)
    findings = Findings()
    # An image that cannot be read is an error of the reader, as in other data sets.
    sizes = check_images(found.files, Findings(), decode=False)
    corners = faces.check_boxes(found, sizes, findings)
    findings.require_none(f"'{path}': ")
    dataset.cname2cid = {"face": 0}
    dataset.roidbs = [
        _record(
            dataset,
            {
                "im_file": os.fspath(file),
                "im_id": np.array([number]),
                **(_size(size) if size else {}),
            },
            {"gt_bbox": boxes_xyxy, "gt_class": np.zeros((len(boxes_xyxy), 1), np.int32)},
        )
        for number, (file, size, boxes_xyxy) in enumerate(zip(found.files, sizes, corners))
    ]


def fill_in_sizes(dataset: Any) -> None:
    """Read the sizes of images that the records of a parsed data set leave out."""
    for record in dataset.roidbs:
        if "im_file" in record and not (record.get("h") and record.get("w")):
            record.update(_size(decoded_size_hw(record["im_file"])))


def _size(size_hw: Sequence[float] | None) -> dict[str, float]:
    return {"h": float(size_hw[0]), "w": float(size_hw[1])} if size_hw else {}


def _record(dataset: Any, image: dict[str, Any], truth: dict[str, Any]) -> dict[str, Any]:
    """A record with the ``data_fields`` of a data set."""
    fields = dataset.data_fields
    chosen = {key: value for key, value in truth.items() if key in fields}
    return {**image, **chosen} if "image" in fields else chosen

"""Replaces how ppdet's data sets and pycocotools read annotations; imported once ppdet is."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import ppdet.data.source.category as ppdet_category
import ppdet.data.source.dataset as ppdet_dataset
from ppdet.data.reader import EvalReader
from ppdet.data.source.coco import COCODataSet
from ppdet.data.source.voc import VOCDataSet
from ppdet.data.source.widerface import WIDERFaceDataSet
from pycocotools.coco import COCO

from slim_det.core.errors import DataError, one_line
from slim_det.evaluate.data import coco, voc
from slim_det.evaluate.data.records import (
    fill_in_sizes,
    read_face_records,
    read_voc_records,
)

_parse_coco_of_ppdet = COCODataSet.parse_dataset
_parse_faces_of_ppdet = WIDERFaceDataSet.parse_dataset
_download_of_ppdet = ppdet_dataset.get_dataset_path
_create_index_of_pycocotools = COCO.createIndex


def read_as_checked() -> None:
    """Replace what ppdet and pycocotools read annotations with."""
    VOCDataSet.parse_dataset = read_voc_records
    WIDERFaceDataSet.parse_dataset = _parse_faces
    COCODataSet.parse_dataset = _parse_coco
    COCO.createIndex = _create_index
    EvalReader.__call__ = _read_all
    ppdet_category.open = _open_labels
    ppdet_dataset.get_dataset_path = _download


def _parse_faces(dataset: Any) -> None:
    """`WIDERFaceDataSet.parse_dataset`: ours, but ppdet's if faces have landmarks."""
    if dataset.with_lmk:
        _parse_faces_of_ppdet(dataset)
        fill_in_sizes(dataset)
    else:
        read_face_records(dataset)


def _parse_coco(dataset: Any) -> None:
    """`COCODataSet.parse_dataset`: ppdet's, and the sizes that are not stated."""
    _parse_coco_of_ppdet(dataset)
    fill_in_sizes(dataset)


def _create_index(truth: COCO) -> None:
    """`COCO.createIndex`, after what annotations leave out is filled in."""
    coco.fill_in(truth.dataset)
    _create_index_of_pycocotools(truth)


def _read_all(reader: EvalReader, dataset: Any, *arguments: Any, **named: Any) -> Any:
    """`EvalReader.__call__`: ppdet's, also with the images that have no objects."""
    if hasattr(dataset, "allow_empty"):
        dataset.allow_empty, dataset.empty_ratio = True, 1.0
    return super(EvalReader, reader).__call__(dataset, *arguments, **named)


def _download(path: str, annotation: str, images: str) -> Any:
    """`get_dataset_path`: ppdet's, which downloads a data set that is not complete.

    Raises:
        DataError: It cannot be downloaded.
    """
    try:
        return _download_of_ppdet(path, annotation, images)
    except Exception as error:  # of any library that a download uses
        missing = annotation or images or "its files"
        raise DataError(
            f"the data set '{path}' has no '{missing}', and cannot be downloaded: {one_line(error)}"
        ) from error


def _open_labels(path: str) -> io.StringIO:
    """Replaces `open` where ppdet reads lists of labels."""
    return io.StringIO("\n".join(voc.read_labels(Path(path))))

"""Match results of one image's detections, and pooling them over images."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Layout of one image: magic bytes, CRC-32 of all that follows, number of boxes, the columns.
_MARK = b"SDM1"
_HEADER = struct.Struct("<4sII")
_COLUMNS = {"classes": "<i2", "scores": "<f4", "hits": "<u2", "ignored": "<u2"}
_BYTES_A_BOX = sum(np.dtype(kind).itemsize for kind in _COLUMNS.values())


@dataclass(frozen=True, eq=False)
class ImageMatches:
    """One model's detections in one image, matched at up to 16 IoU thresholds.

    Boxes with equal scores keep the detector's order.

    Attributes:
        classes: int16 [n], class indices.
        scores: float32 [n].
        hits: uint16 [n]; bit t is set if the box is a true positive at threshold t.
        ignored: uint16 [n]; bit t is set if the box counts as neither true nor false positive at
            threshold t.
    """

    classes: np.ndarray
    scores: np.ndarray
    hits: np.ndarray
    ignored: np.ndarray

    def to_bytes(self) -> bytes:
        """Serialize to 12 bytes plus 10 per box; `from_bytes` reads them."""
        columns = [np.asarray(getattr(self, name), kind) for name, kind in _COLUMNS.items()]
        body = struct.pack("<I", len(self.classes)) + b"".join(c.tobytes() for c in columns)
        return _MARK + struct.pack("<I", zlib.crc32(body)) + body

    @classmethod
    def from_bytes(cls, data: bytes) -> ImageMatches:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: The bytes are truncated, damaged or of another format.
        """
        if len(data) < _HEADER.size or data[: len(_MARK)] != _MARK:
            raise ValueError("these bytes are not the matches of an image")
        _, checksum, count = _HEADER.unpack_from(data)
        expected = _HEADER.size + count * _BYTES_A_BOX
        if len(data) != expected:
            raise ValueError(
                f"matches of {count} boxes take {expected} bytes, these are {len(data)}"
            )
        if zlib.crc32(data[8:]) != checksum:
            raise ValueError("the matches of an image are damaged: their checksum differs")
        columns, offset = {}, _HEADER.size
        for name, kind in _COLUMNS.items():
            stored = np.frombuffer(data, kind, count, offset)
            columns[name] = stored.astype(stored.dtype.newbyteorder("="))
            offset += stored.nbytes
        if (columns["hits"] & columns["ignored"]).any():
            raise ValueError("the matches of an image have a box that is both a hit and ignored")
        return cls(**columns)


def image_indices(
    matches: Sequence[ImageMatches], images: Sequence[int] | None, num_images: int
) -> np.ndarray:
    """Image index of each element of ``matches``, as int [len(matches)].

    See `ApScorer.scores` for ``images``; valid indices are 0 to ``num_images - 1``.
    """
    chosen = np.arange(num_images) if images is None else np.asarray(images, dtype=np.int64)
    if len(chosen) != len(matches):
        raise ValueError(f"matches of {len(matches)} images given for {len(chosen)} images")
    if len(chosen) and not (0 <= chosen.min() and chosen.max() < num_images):
        raise ValueError(
            f"images {chosen.min()} to {chosen.max()} requested; valid: 0 to {num_images - 1}"
        )
    return chosen


def pool_by_class(
    matches: Sequence[ImageMatches], num_classes: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pool the matches of many images by class; boxes of other classes are left out.

    Returns:
        For every class hits and ignored, uint16 [boxes of the class] each, by descending score.
        Equal scores keep the order of ``matches``, and within an image the detector's order.
    """
    if not matches:
        nothing = np.zeros(0, np.uint16)
        return [(nothing, nothing)] * num_classes
    classes = np.concatenate([m.classes for m in matches])
    scores = np.concatenate([m.scores for m in matches])
    order = np.lexsort((-scores, classes))  # stable
    hits = np.concatenate([m.hits for m in matches])[order]
    ignored = np.concatenate([m.ignored for m in matches])[order]
    bounds = np.searchsorted(classes[order], np.arange(num_classes + 1)).tolist()
    return [(hits[a:b], ignored[a:b]) for a, b in zip(bounds, bounds[1:])]

"""How far one engine's outputs are from another's, and what may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from slim_det.deploy.metric_check import MAX_GAP
from slim_det.evaluate.box_agreement import BoxAgreement, compare_boxes
from slim_det.evaluate.detections import Detections
from slim_det.evaluate.evaluation import POINTS

AP_TOLERANCE = MAX_GAP / POINTS
"""AP that an exported model may differ by from the model, as when it was exported."""

NOISE_FACTOR = 2.0
"""How often its own noise a model's outputs may be apart: two engines both round otherwise."""


@dataclass(frozen=True)
class Found:
    """What one engine gives for one image.

    Attributes:
        raw: The head's raw outputs, float32, in the order in which they are computed; none where
            it has no such.
        boxes: What it finds.
    """

    raw: list[np.ndarray]
    boxes: Detections


@dataclass(frozen=True)
class Limits:
    """What a stage has to keep.

    Attributes:
        cosine: Least cosine of a raw output with the reference's.
        same_boxes: Whether every box has its partner (see `compare_boxes`).
        ap: Largest difference of AP from the reference's; None: it is not judged.
    """

    cosine: float
    same_boxes: bool = False
    ap: float | None = AP_TOLERANCE


@dataclass(frozen=True)
class Stage:
    """One comparison.

    Attributes:
        name: What was compared.
        max_abs: Largest absolute difference of a raw output; None where none was compared.
        cosine: Worst cosine of a raw output of one image.
        ap: AP on the evaluation images, 0 to 1; None where it was not measured.
        passed: Whether all limits are kept; None where the stage was skipped.
        note: Context for people, and why it failed.
    """

    name: str
    max_abs: float | None = None
    cosine: float | None = None
    ap: float | None = None
    passed: bool | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The stage under its JSON keys; numbers that are not finite are null."""
        found = asdict(self)
        for key in ("max_abs", "cosine", "ap"):
            if found[key] is not None and not np.isfinite(found[key]):
                found[key] = None
        return found


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    """Cosine of the angle between two tensors of one shape; of two that are zero it is 1."""
    if np.array_equal(left, right):
        return 1.0
    a, b = left.astype(np.float64).ravel(), right.astype(np.float64).ravel()
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return min(1.0, float(a @ b / norms)) if norms else 0.0


def compare_tensors(
    found: Sequence[np.ndarray], reference: Sequence[np.ndarray]
) -> tuple[float, float, str]:
    """Compare tensors in pairs.

    Returns:
        Largest absolute difference, worst cosine, and what is wrong besides: '' or that the
        number or a shape differs, or that a value is not finite; then inf and 0.
    """
    shapes = [list(map(list, (t.shape for t in side))) for side in (found, reference)]
    if shapes[0] != shapes[1]:
        return np.inf, 0.0, f"shapes are {shapes[0]}, expected {shapes[1]}"
    if not all(np.isfinite(tensor).all() for tensor in found):
        return np.inf, 0.0, "values are not finite"
    differences = [float(np.abs(a - b).max(initial=0.0)) for a, b in zip(found, reference)]
    return max(differences, default=0.0), min(map(cosine, found, reference), default=1.0), ""


def distances(found: Sequence[Found], reference: Sequence[Found]) -> list[float]:
    """How far each raw output is from the reference's: 1 - cosine, over all images at once."""
    pooled = [
        [np.concatenate([t.ravel() for t in images]) for images in zip(*(one.raw for one in side))]
        for side in (found, reference)
    ]
    return [1.0 - cosine(left, right) for left, right in zip(*pooled)]


def judge(
    name: str,
    found: Sequence[Found],
    reference: Sequence[Found],
    limits: Limits,
    aps: tuple[float | None, float | None] = (None, None),
    note: str = "",
    noise: Sequence[float] = (),
) -> Stage:
    """Compare what an engine gave for some images with what the reference gave.

    Args:
        name: Of the stage.
        found: One entry an image.
        reference: For the same images.
        limits: What has to be kept.
        aps: AP of this engine and of the reference, where they were measured.
        note: Begins the stage's note.
        noise: `distances` by which last digits move the model, of each raw output: where they are
            given, an engine below the least cosine may be `NOISE_FACTOR` times as far.
    """
    pairs = list(zip(found, reference))
    compared = [compare_tensors(a.raw, b.raw) for a, b in pairs]
    has_raw = any(b.raw for _, b in pairs)
    worst = min((c for _, c, _ in compared), default=0.0)
    faults = [fault for _, _, fault in compared if fault][:1]
    if not pairs:
        faults.append("no image was compared")
    notes = [note] if note else []
    if has_raw and not faults and worst < limits.cosine:
        times = _times_as_far(distances(found, reference), noise) if noise else np.inf
        is_noise = times <= NOISE_FACTOR
        reason = f"cosine below {limits.cosine}{' by rounding noise' if is_noise else ''}"
        if noise:
            reason += f", {times:.1f} times as far as last digits move the model"
        (notes if is_noise else faults).append(reason)
    if limits.same_boxes and pairs:
        agreement = _agreement([compare_boxes(a.boxes, b.boxes) for a, b in pairs])
        (notes if agreement.passed else faults).append(str(agreement))
    if limits.ap is not None and None not in aps:
        difference = abs(float(aps[0] or 0.0) - float(aps[1] or 0.0))
        if not difference <= limits.ap:
            faults.append(f"AP differs by {difference:.4f}, at most {limits.ap} is expected")
    elif pairs and not has_raw and not limits.same_boxes:
        faults.append("without raw outputs, boxes or AP there is nothing to judge by")
    return Stage(
        name=name,
        max_abs=max(m for m, _, _ in compared) if has_raw else None,
        cosine=worst if has_raw else None,
        ap=aps[0],
        passed=not faults,
        note="; ".join([*faults, *notes]),
    )


def _times_as_far(found: Sequence[float], noise: Sequence[float]) -> float:
    ratios = (a / b if b > 0 else np.inf if a > 0 else 0.0 for a, b in zip(found, noise))
    return max(ratios, default=0.0)


def _agreement(parts: list[BoxAgreement]) -> BoxAgreement:
    """The agreements of several images as one."""
    return BoxAgreement(
        sum(part.boxes for part in parts),
        sum(part.unmatched for part in parts),
        max(part.max_score for part in parts),
        max(part.max_pixels for part in parts),
    )

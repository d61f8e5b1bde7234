"""Comparison of one engine's outputs with another's, and the limits of their differences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from slim_det.deploy.metric_check import MAX_GAP, has_collapsed
from slim_det.evaluate.box_agreement import BoxAgreement, compare_boxes
from slim_det.evaluate.detections import Detections
from slim_det.evaluate.evaluation import POINTS
from slim_det.evaluate.tensor_agreement import compare_tensors, cosine, worst_of

AP_TOLERANCE = MAX_GAP / POINTS
"""Largest AP difference between an exported model and its model; the same as in the export."""

NOISE_FACTOR = 2.0
"""Allowed difference of an engine, in multiples of the model's own rounding noise."""


@dataclass(frozen=True)
class Found:
    """One engine's outputs for one image.

    Attributes:
        raw: The head's raw outputs, float32, in execution order; empty if the detector has none.
        boxes: The detections.
    """

    raw: list[np.ndarray]
    boxes: Detections


@dataclass(frozen=True)
class Limits:
    """Limits that an engine's outputs must satisfy.

    Attributes:
        cosine: Least cosine similarity between a raw output and the reference's.
        same_boxes: Whether every box must have a partner (see `compare_boxes`).
        ap: Largest AP difference from the reference; None to ignore AP.
    """

    cosine: float
    same_boxes: bool = False
    ap: float | None = AP_TOLERANCE


@dataclass(frozen=True)
class Stage:
    """One comparison.

    Attributes:
        name: Name of what was compared.
        max_abs: Largest absolute difference of a raw output; None if none was compared.
        cosine: Lowest cosine similarity of a raw output of one image.
        ap: AP on the evaluation images, 0 to 1; None if not measured.
        passed: Whether all limits are met; None if the stage was skipped.
        note: Context, and the reasons for a failure.
        max_relative: Largest absolute difference over the largest absolute value of the
            reference; None if the stage is not judged by it.
    """

    name: str
    max_abs: float | None = None
    cosine: float | None = None
    ap: float | None = None
    passed: bool | None = None
    note: str = ""
    max_relative: float | None = None

    @property
    def verdict(self) -> str:
        """The outcome in one word."""
        return {True: "pass", False: "FAIL", None: "skip"}[self.passed]

    def as_dict(self) -> dict[str, Any]:
        """The stage as a dict with its JSON keys; numbers that are not finite are None."""
        found = asdict(self)
        if self.max_relative is None:
            del found["max_relative"]
        for key, value in found.items():
            if isinstance(value, float) and not np.isfinite(value):
                found[key] = None
        return found

    def __str__(self) -> str:
        """One human-readable line."""
        figures = [
            f"{name} {value:{form}}"
            for name, value, form in (
                ("max abs", self.max_abs, ".2e"),
                ("relative", self.max_relative, ".2e"),
                ("cosine", self.cosine, ".9f"),
            )
            if value is not None
        ]
        return f"{self.verdict}  {self.name}: {', '.join(figures)}  {self.note}"


def distances(found: Sequence[Found], reference: Sequence[Found]) -> list[float]:
    """Cosine distance (1 - cosine) of each raw output from the reference, over all images."""
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
    """Compare an engine's outputs for some images with those of the reference.

    Args:
        name: Name of the stage.
        found: Outputs of the engine, one entry per image.
        reference: Outputs of the reference for the same images.
        limits: Limits that the outputs must satisfy.
        aps: AP of this engine and of the reference; None if not measured.
        note: Beginning of the stage's note.
        noise: The model's own rounding noise, as the `distances` of each raw output. If given, an
            engine below the least cosine passes if it differs by at most `NOISE_FACTOR` times this.
    """
    pairs = list(zip(found, reference))
    compared = worst_of([compare_tensors(a.raw, b.raw) for a, b in pairs])
    has_raw = any(b.raw for _, b in pairs)
    faults = [compared.fault] if compared.fault else []
    if not pairs:
        faults.append("no image was compared")
    notes = [note] if note else []
    if has_raw and not faults and compared.cosine < limits.cosine:
        reason = f"cosine below {limits.cosine}"
        times = _largest_ratio(distances(found, reference), noise) if noise else np.inf
        if noise:
            reason += (
                f", {times:.1f} times the model's own rounding noise (at most {NOISE_FACTOR:g} "
                "allowed)"
            )
        (notes if times <= NOISE_FACTOR else faults).append(reason)
    if limits.same_boxes and pairs:
        agreement = BoxAgreement.of_images([compare_boxes(a.boxes, b.boxes) for a, b in pairs])
        (notes if agreement.passed else faults).append(str(agreement))
    if limits.ap is not None and None not in aps:
        difference = abs(float(aps[0] or 0.0) - float(aps[1] or 0.0))
        if not difference <= limits.ap:
            faults.append(f"AP differs by {difference:.4f}, expected at most {limits.ap}")
    elif None not in aps and has_collapsed(float(aps[0] or 0.0), float(aps[1] or 0.0)):
        faults.append("more than half of the AP is lost")
    elif pairs and not has_raw and not limits.same_boxes:
        faults.append("there are no raw outputs, boxes or AP to judge by")
    return Stage(
        name=name,
        max_abs=compared.max_abs if has_raw else None,
        cosine=compared.cosine if has_raw else None,
        ap=aps[0],
        passed=not faults,
        note="; ".join([*faults, *notes]),
    )


def _largest_ratio(found: Sequence[float], noise: Sequence[float]) -> float:
    ratios = (a / b if b > 0 else np.inf if a > 0 else 0.0 for a, b in zip(found, noise))
    return max(ratios, default=0.0)

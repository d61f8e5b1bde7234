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
from slim_det.evaluate.tensor_agreement import compare_tensors, cosine, worst_of

AP_TOLERANCE = MAX_GAP / POINTS
"""AP that an exported model may differ by from the model, as when it was exported."""

NOISE_FACTOR = 2.0
"""An engine may differ by so many times a model's own rounding noise: both of them round."""


@dataclass(frozen=True)
class Found:
    """What one engine gives for one image.

    Attributes:
        raw: The head's raw outputs, float32, in the order in which they are computed; empty for a
            detector that has none.
        boxes: What it finds.
    """

    raw: list[np.ndarray]
    boxes: Detections


@dataclass(frozen=True)
class Limits:
    """What an engine's outputs must satisfy.

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
        max_relative: Largest absolute difference over the largest absolute value of the
            reference; None where it is not what the stage is judged by.
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
        """One word for people."""
        return {True: "pass", False: "FAIL", None: "skip"}[self.passed]

    def as_dict(self) -> dict[str, Any]:
        """The stage under its JSON keys; numbers that are not finite are null."""
        found = asdict(self)
        if self.max_relative is None:
            del found["max_relative"]
        for key, value in found.items():
            if isinstance(value, float) and not np.isfinite(value):
                found[key] = None
        return found

    def __str__(self) -> str:
        """One line for people."""
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
        limits: What they must satisfy.
        aps: AP of this engine and of the reference, where they were measured.
        note: Begins the stage's note.
        noise: The model's own rounding noise, as `distances` of each raw output: where it is
            given, an engine below the least cosine may differ by `NOISE_FACTOR` times as much.
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
        times = _times_as_far(distances(found, reference), noise) if noise else np.inf
        if noise:
            reason += (
                f", {times:.1f} times the model's own rounding noise (at most {NOISE_FACTOR:g} "
                "are allowed)"
            )
        (notes if times <= NOISE_FACTOR else faults).append(reason)
    if limits.same_boxes and pairs:
        agreement = BoxAgreement.of_images([compare_boxes(a.boxes, b.boxes) for a, b in pairs])
        (notes if agreement.passed else faults).append(str(agreement))
    if limits.ap is not None and None not in aps:
        difference = abs(float(aps[0] or 0.0) - float(aps[1] or 0.0))
        if not difference <= limits.ap:
            faults.append(f"AP differs by {difference:.4f}, at most {limits.ap} is expected")
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


def _times_as_far(found: Sequence[float], noise: Sequence[float]) -> float:
    ratios = (a / b if b > 0 else np.inf if a > 0 else 0.0 for a, b in zip(found, noise))
    return max(ratios, default=0.0)

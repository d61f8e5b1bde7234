"""Settings of what is learned from images: which images, how many positions, and the ridge."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Optional

from pydantic import Field

from slim_det.core.schema import Count, check_keys, validated

MaybeFolder = Annotated[
    Optional[Annotated[str, Field(min_length=1)]], Field(description="a folder with images")
]

LEAST_RIDGE = 1e-8
"""With less, rounding errors of inputs that depend on each other make their moments indefinite."""


@dataclass(frozen=True)
class Calibration:
    """Images, and what is taken from them.

    Attributes:
        images: How many, the first of ``TrainDataset`` or of ``folder``; fewer if it has fewer.
        folder: A folder with images, which have no labels; None for ``TrainDataset``.
        positions: Output positions at which each layer is seen, over all images.
        ridge: How strongly solutions are drawn to the weights that a layer has, relative to the
            mean square of its inputs.
    """

    images: Count = 256
    folder: MaybeFolder = None
    positions: Count = 8192
    ridge: Annotated[
        float,
        Field(ge=LEAST_RIDGE, le=1, allow_inf_nan=False, description="a number from 1e-8 to 1"),
    ] = 1e-4

    def as_dict(self) -> dict[str, Any]:
        """Values of JSON."""
        return asdict(self)


def read_calibration(values: Any) -> Calibration:
    """Read ``Pruner.calibration`` of a slim file; None for the defaults.

    Raises:
        ConfigError: A key or a value is not valid.
    """
    values = {} if values is None else values
    check_keys(values, [field.name for field in fields(Calibration)], "Pruner.calibration")
    return validated(Calibration, values, "Pruner.calibration.")

"""The normalisation of images as a part of a program.

It comes before everything else, so the first convolution still pads the normalised image with
zeros. Folding the mean into that convolution would be wrong at the edges of the image.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from slim_det.core.errors import ConfigError, one_line
from slim_det.graph.op import Op
from slim_det.graph.program import DeployProgram
from slim_det.graph.tracing import deployment_program

IMAGE = "image"

_SHAPE = (1, 3, 1, 1)
_RELATIVE = 1e-5
_ABSOLUTE = 1e-6


@dataclass(frozen=True, eq=False)
class Normalization:
    """What an image's pixels are mapped to, channel by channel: ``scale * x + shift``.

    Attributes:
        scale: float64 [3], in the order of the image's channels.
        shift: float64 [3].
    """

    scale: np.ndarray
    shift: np.ndarray

    @classmethod
    def of_steps(cls, steps: Iterable[dict[str, Any]]) -> Normalization:
        """What a reader's steps do together; only ``NormalizeImage`` changes values.

        Args:
            steps: Transforms as ppdet's readers list them: name -> settings.

        Raises:
            ConfigError: The settings of one are not valid.
        """
        found = cls(np.ones(3), np.zeros(3))
        for settings in (step["NormalizeImage"] for step in steps if "NormalizeImage" in step):
            try:
                found = found._then(**(settings or {}))
            except (TypeError, ValueError, ArithmeticError) as error:
                raise ConfigError(
                    f"NormalizeImage: {settings} is not valid ({one_line(error)}); expected mean "
                    "and std of 3 numbers each, is_scale and norm_type"
                ) from error
        return found

    def _then(
        self,
        mean: Any = (0.485, 0.456, 0.406),
        std: Any = (0.229, 0.224, 0.225),
        is_scale: bool = True,
        norm_type: str = "mean_std",
    ) -> Normalization:
        """This, followed by ppdet's ``NormalizeImage``, whose defaults these are."""
        scale, shift = ((part / 255 if is_scale else part) for part in (self.scale, self.shift))
        if norm_type == "mean_std":
            deviation = np.asarray(std, np.float64)
            with np.errstate(divide="raise"):
                scale = scale / deviation
            shift = (shift - np.asarray(mean, np.float64)) / deviation
        return Normalization(np.broadcast_to(scale, 3), np.broadcast_to(shift, 3))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The normalised image, float [..., 3, H, W]."""
        scale, shift = (part.reshape(_SHAPE[1:]) for part in (self.scale, self.shift))
        return image * scale + shift

    def agrees_with(self, other: Normalization) -> bool:
        """Whether both map pixels to the same values, but for rounding."""
        pairs = ((self.scale, other.scale), (self.shift, other.shift))
        return all(np.allclose(a, b, rtol=_RELATIVE, atol=_ABSOLUTE) for a, b in pairs)

    def __str__(self) -> str:
        """The values that pixels of 0 and 255 get, by channel."""
        return " and ".join(
            f"[{', '.join(f'{value:.4g}' for value in self.scale * pixel + self.shift)}]"
            for pixel in (0, 255)
        )


@deployment_program()
def write_normalization(p: DeployProgram, normalization: Normalization) -> None:
    """Let a program normalise its image itself, in place."""
    names = [f"{IMAGE}.{part}" for part in ("factor", "shift", "scaled", "normalized")]
    factor, shift, scaled, normalized = names
    for name, values in ((factor, normalization.scale), (shift, normalization.shift)):
        p.set_value(name, values.astype(np.float32).reshape(_SHAPE))
    readers = p.readers(IMAGE)
    place = p.ops.index(readers[0])
    for reader in readers:
        p.rename_input(reader, IMAGE, normalized)
    for step, (kind, source, operand, result) in enumerate(
        (
            ("elementwise_mul", IMAGE, factor, scaled),
            ("elementwise_add", scaled, shift, normalized),
        )
    ):
        p.new_variable(result, like=IMAGE)
        p.insert(
            place + step,
            kind,
            {"X": [source], "Y": [operand]},
            {"Out": [result]},
            {"axis": -1},
        )


def read_normalization(p: DeployProgram) -> Normalization | None:
    """The normalisation that a program begins with; None if its image is normalised before."""
    multiply = _only(p, IMAGE, "elementwise_mul")
    add = multiply and _only(p, multiply.output(), "elementwise_add")
    if multiply is None or add is None:
        return None
    scale, shift = (
        np.broadcast_to(p.value(op.input("Y")).astype(np.float64).ravel(), 3)
        for op in (multiply, add)
    )
    return Normalization(scale, shift)


def _only(p: DeployProgram, name: str, kind: str) -> Op | None:
    """The operator of a kind that alone reads a variable, if its other operand is a parameter."""
    op = p.only_reader(name)
    fits = op is not None and op.type == kind and p.is_parameter(op.input("Y"))
    return op if fits else None

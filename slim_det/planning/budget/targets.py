"""Targets of a plan, checked before anything is built."""

from __future__ import annotations

import math
from dataclasses import dataclass

from slim_det.core.errors import ConfigError

RESOURCES = {
    "loss": "macs",
    "macs": "macs",
    "params": "params",
    "latency": "latency_ms",
    "latency_ms": "latency_ms",
}
"""Kind of target -> the cost it limits, or only reports (``loss``)."""

UNITS = {"macs": "MACs", "params": "parameters", "latency_ms": "ms"}


@dataclass(frozen=True)
class Target:
    """A limit to reach.

    Attributes:
        kind: ``loss`` (largest relative loss of a layer), ``macs``, ``params`` or ``latency``
            (share to remove), or ``latency_ms`` (milliseconds per image).
        value: Between 0 and 1; above 0 for ``latency_ms``.

    Raises:
        ConfigError: The value is out of range.
    """

    kind: str
    value: float

    def __post_init__(self) -> None:
        highest, text = (math.inf, "a number of milliseconds above 0")
        if self.kind != "latency_ms":
            highest, text = (1.0, "a share between 0 and 1, both excluded")
        if not 0.0 < self.value < highest:
            raise ConfigError(f"--{self.kind} {self.value:g} is not valid; expected {text}")

    @property
    def resource(self) -> str:
        """``macs``, ``params`` or ``latency_ms``."""
        return RESOURCES[self.kind]

    def budget(self, before: float) -> float:
        """The largest cost that meets the target, from the cost of the unpruned model."""
        return self.value if self.kind == "latency_ms" else (1.0 - self.value) * before

    def unreachable(self, before: float, least: float) -> ConfigError:
        """The error for a budget below the smallest possible cost, with the nearest target."""
        unit = UNITS[self.resource]
        if self.kind == "latency_ms":
            possible = f"{math.ceil(least * 1e3) / 1e3:g}"
            reach = f"the smallest plan takes {least:.3f} of {before:.3f} ms"
        else:
            share = 1.0 - least / before if before else 0.0
            possible = f"{math.floor(share * 1e4) / 1e4:g}"
            reach = f"at most {share:.2%} of the {'latency' if unit == 'ms' else unit} can go"
        return ConfigError(
            f"--{self.kind} {self.value:g} cannot be reached: {reach} with the layers and ratios "
            f"of the sensitivity file; the nearest is --{self.kind} {possible}"
        )

    def not_solved(self) -> ConfigError:
        """The error for a solver that found nothing in time."""
        return ConfigError(
            f"--{self.kind} {self.value:g}: the solver found no plan in time; expected fewer "
            "layers in the sensitivity file or a coarser --align"
        )


def read_target(
    loss: float | None = None,
    macs: float | None = None,
    params: float | None = None,
    latency: float | None = None,
    latency_ms: float | None = None,
) -> Target:
    """The one target that is given.

    Raises:
        ConfigError: There is none, there are several, or its value is out of range.
    """
    values = dict(zip(RESOURCES, (loss, macs, params, latency, latency_ms)))
    given = [kind for kind, value in values.items() if value is not None]
    if len(given) != 1:
        found = " and ".join(f"--{kind}" for kind in given) or "none"
        raise ConfigError(
            f"one target is needed, {found} given; expected one of "
            f"{', '.join(f'--{kind}' for kind in RESOURCES)}"
        )
    return Target(given[0], float(values[given[0]] or 0.0))

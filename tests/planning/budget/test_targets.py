"""Which targets are accepted, and the error for one that cannot be reached."""

from __future__ import annotations

import math

import pytest

from slim_det.core.errors import ConfigError
from slim_det.planning.budget.targets import Target, read_target


@pytest.mark.parametrize("kind", ["loss", "macs", "params", "latency"])
@pytest.mark.parametrize("value", [-0.5, 0.0, 1.0, 1.5, math.nan, math.inf])
def test_share_out_of_range(kind: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^--{kind} .*between 0 and 1, both excluded$"):
        Target(kind, value)


@pytest.mark.parametrize("value", [-1.0, 0.0, math.nan, math.inf])
def test_milliseconds_out_of_range(value: float) -> None:
    with pytest.raises(ConfigError, match="^--latency_ms .*milliseconds above 0$"):
        Target("latency_ms", value)


def test_exactly_one_target() -> None:
    assert read_target(macs=0.5) == Target("macs", 0.5)
    assert read_target(latency_ms=12.0) == Target("latency_ms", 12.0)
    with pytest.raises(ConfigError, match="none given; expected one of --loss, --macs"):
        read_target()
    with pytest.raises(ConfigError, match="--loss and --macs given"):
        read_target(loss=0.1, macs=0.5)
    with pytest.raises(ConfigError, match="--macs 0 is not valid"):
        read_target(macs=0.0)


def test_budgets() -> None:
    assert Target("macs", 0.25).budget(200.0) == 150.0
    assert Target("latency", 0.25).budget(80.0) == 60.0
    assert Target("latency_ms", 70.0).budget(80.0) == 70.0


def test_the_nearest_target_can_be_reached() -> None:
    error = str(Target("macs", 0.9).unreachable(3.0, 1.0))
    assert error.endswith("the nearest is --macs 0.6666") and "66.67% of the MACs" in error
    error = str(Target("latency_ms", 10.0).unreachable(100.0, 20.12345))
    assert error.endswith("the nearest is --latency_ms 20.124")

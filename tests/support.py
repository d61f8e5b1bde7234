"""What several test modules need: detectors from the shipped configurations, traces, plain nets."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import pytest
from paddle.static import InputSpec
from paddle.utils import unique_name

import slim_det  # noqa: F401  (before ppdet, as in every command)
from slim_det.graph.engine import NO_INT8, cpu_has_int8
from slim_det.graph.trace import Trace, trace_layer

SUM_TOLERANCE = 4e-6
"""Allowed difference as a share of the largest value: ten times the largest that was found between
Paddle, its engines and numpy, with oneDNN limited to SSE4.1, AVX2 or AVX-512 and MKL to its most
compatible kernels."""

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"


class Config(dict):
    """Settings by name and by attribute, as ppdet's are."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


@contextlib.contextmanager
def restored_config() -> Iterator[None]:
    """Restore ppdet's process-wide configuration afterwards, whatever is loaded meanwhile."""
    import ppdet.modeling  # noqa: F401  (registers its components)
    from ppdet.core.config.schema import SchemaDict
    from ppdet.core.workspace import global_config

    before = {key: _copied(value) for key, value in global_config.items()}
    try:
        yield
    finally:
        registered = {
            key: value
            for key, value in global_config.items()
            if key not in before and isinstance(value, SchemaDict)
        }
        global_config.clear()
        global_config.update(before)
        global_config.update(registered)


def build_detector(config: str, **changes: dict[str, Any]) -> paddle.nn.Layer:
    """Build the model of a shipped configuration; its automatic names start at zero.

    Args:
        config: Path below `configs/`, without `.yml`.
        changes: Component name -> settings that replace those of the file.
    """
    from ppdet.core.workspace import create, load_config, merge_config

    with restored_config(), unique_name.guard():
        settings = load_config(str(CONFIGS / f"{config}.yml"))
        merge_config(changes)
        return create(settings["architecture"])


def trace_plain(layer: paddle.nn.Layer, *shape: int) -> Trace:
    """Trace a layer that takes one tensor of this shape, in the layer's own precision."""
    dtype = next((str(p.dtype).split(".")[-1] for p in layer.parameters()), "float32")
    return trace_layer(layer, [InputSpec(list(shape), dtype, "x")])


def fill_with(layer: paddle.nn.Layer, values: dict[str, Any]) -> None:
    """Set parameters by name; a number fills all of the parameter."""
    parameters = dict(layer.named_parameters())
    for name, value in values.items():
        shape = parameters[name].shape
        parameters[name].set_value(np.broadcast_to(value, shape).astype("float32"))


def assert_same_sums(found: Any, expected: Any, what: object = "") -> None:
    """Check that two results are the same float32 sums of products, added up in different orders.

    Engines, kernels for different processors, batches of different sizes and numpy use different
    orders, and every addition rounds by up to 6e-8 of the sum so far. So the error is compared with
    the largest expected value, not with each result, which is near zero if its terms cancel out.

    Args:
        found: Array or number.
        expected: Of the same shape.
        what: Named in the error.
    """
    left, right = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert left.shape == right.shape and np.isfinite(right).all(), what
    allowed = SUM_TOLERANCE * np.abs(right).max(initial=0.0)
    difference = np.abs(left - right).max(initial=0.0)
    assert difference <= allowed, f"{what}: {difference:.3g} apart, at most {allowed:.3g} allowed"


def require_int8() -> None:
    """Skip the rest of a test that compares results of int8 kernels if the CPU has none.

    Older kernels add pairs of products in 16 bits, which overflows, so their results differ.
    """
    if not cpu_has_int8():
        pytest.skip(NO_INT8)


def _copied(value: Any) -> Any:
    """A copy of settings that shares no list or mapping; modules and classes are not copied."""
    if isinstance(value, list):
        return [_copied(item) for item in value]
    if not isinstance(value, dict):
        return value
    copy = value.copy()  # a component's settings know more than their keys
    for key, item in value.items():
        dict.__setitem__(copy, key, _copied(item))
    return copy

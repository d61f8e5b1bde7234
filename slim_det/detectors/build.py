"""Builds a detector of a configuration, the same one every time in a process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import paddle
from ppdet.core.config.schema import SchemaDict
from ppdet.core.workspace import create, global_config


def build_detector(cfg: Any) -> paddle.nn.Layer:
    """Build the architecture of a configuration, with parameter names as in a fresh process."""
    with paddle.utils.unique_name.guard(), _unchanged_settings():
        return create(cfg["architecture"])


@contextlib.contextmanager
def _unchanged_settings() -> Iterator[None]:
    """Give constructors of components copies of the lists and mappings of their settings.

    PicoDet's neck, for example, appends to the default of an argument, so the second detector of a
    process would be another one.
    """
    components = [value for value in global_config.values() if isinstance(value, SchemaDict)]
    settings = [dict(component) for component in components]
    kinds = (getattr(component.pymodule, component.name, None) for component in components)
    constructors: set[Any] = {getattr(kind, "__init__", None) for kind in kinds}
    defaults = {f: f.__defaults__ for f in constructors if getattr(f, "__defaults__", None)}
    try:
        for component in components:
            component.update(_nested_copy(dict(component)))
        for constructor, values in defaults.items():
            constructor.__defaults__ = tuple(map(_nested_copy, values))
        yield
    finally:
        for component, before in zip(components, settings):
            component.update(before)
        for constructor, values in defaults.items():
            constructor.__defaults__ = values


def _nested_copy(value: Any) -> Any:
    """A copy of nested lists and mappings, which holds the same objects."""
    if type(value) is list:
        return [_nested_copy(item) for item in value]
    if type(value) is dict:
        return {key: _nested_copy(item) for key, item in value.items()}
    return value

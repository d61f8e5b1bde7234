"""Scopes of ppdet's process-wide configuration, and plain copies of it.

ppdet is imported inside the functions because its import registers our components, which need
this module.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def fresh_config() -> Iterator[Any]:
    """Reset ppdet's configuration to its state before any file is read, and restore it afterwards.

    Inside, every component is registered with its declared defaults, and the outer configuration
    cannot be seen or changed. What is registered inside stays registered. Yields ppdet's global
    configuration, the same object as outside.
    """
    from ppdet.core.config.schema import SchemaDict
    from ppdet.core.workspace import global_config

    outside = dict(global_config)
    global_config.clear()
    global_config.update(
        {name: unset(value) for name, value in outside.items() if isinstance(value, SchemaDict)}
    )
    try:
        yield global_config
    finally:
        registered = {
            name: unset(value)
            for name, value in global_config.items()
            if name not in outside and isinstance(value, SchemaDict)
        }
        global_config.clear()
        global_config.update(outside)
        global_config.update(registered)


def plain_copy(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """An independent copy of ppdet's configuration, or a part of it, in plain dicts and lists.

    A component has its declared defaults too; those that it shares with others (``num_classes``)
    have their values at the top level.
    """
    return {key: _plain(value, cfg) for key, value in cfg.items()}


def unset(component: Any) -> Any:
    """A component (ppdet's `SchemaDict`) without settings, only with its declared defaults."""
    copy = component.copy()
    copy.clear()
    return copy


def _plain(value: Any, cfg: Mapping[str, Any]) -> Any:
    from ppdet.core.config.schema import SchemaDict, SharedConfig

    if isinstance(value, SchemaDict):
        keys = {*value, *(key for key in value.schema if value.has_default(key))}
        return {key: _plain(value[key], cfg) for key in sorted(keys)}
    if isinstance(value, SharedConfig):
        return cfg.get(value.key, value.default_value)
    if isinstance(value, Mapping):
        return {key: _plain(item, cfg) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, cfg) for item in value]
    return value

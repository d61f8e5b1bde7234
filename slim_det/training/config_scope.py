"""Scopes of ppdet's one process-wide configuration, and plain copies of it.

ppdet is imported inside the functions: its import registers our components, which need this.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any


@contextlib.contextmanager
def fresh_config() -> Iterator[Any]:
    """Give ppdet's configuration as it is before any file is read, and put the present one back.

    Inside, every component is registered and has its declared defaults; no key of the outer
    configuration can be seen or changed. What is registered inside stays registered.

    Yields:
        ppdet's global configuration, the same object as outside.
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
    """A copy in plain dicts and lists that later changes of a configuration do not reach.

    Args:
        cfg: ppdet's configuration, or any part of one.

    Returns:
        Every key; a component holds its declared defaults too, those it shares with others
        (``num_classes``) as they stand at the top level.
    """
    return {key: _plain(value, cfg) for key, value in cfg.items()}


def unset(component: Any) -> Any:
    """A component's settings as registered: none, only what it declares.

    Args:
        component: ppdet's `SchemaDict` of it.
    """
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

"""Reads YAML files with `_BASE_` lists, with a loader that cannot run code.

ppdet's own loader builds any Python object that a file names. This one knows the tags that
ppdet's components registered (`!PiecewiseDecay`) and refuses every other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from slim_det.core.errors import ConfigError, nearest, one_line

BASE_KEY = "_BASE_"

_REFUSED_TAG = "!Callable"
"""The one tag of ppdet whose object can call any function."""


def read_tree(
    path: str | Path, seen: tuple[str, ...] = (), *, check_only: bool = False
) -> dict[str, Any]:
    """Read one YAML file and its ``_BASE_`` files.

    Args:
        path: YAML file.
        seen: Files that include this one.
        check_only: Build no objects of ppdet, to check a file before ppdet is imported.

    Raises:
        ConfigError: A file is missing, is not a mapping, is not safe YAML, or includes itself.
    """
    path = Path(os.path.expanduser(path))
    where = f"{path} (a base of {seen[-1]})" if seen else str(path)
    if str(path) in seen:
        raise ConfigError(f"{path}: includes itself through {BASE_KEY}")
    if path.suffix not in (".yml", ".yaml"):
        raise ConfigError(f"{where}: expected a .yml or .yaml file")
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.load(text, _safe_loader(check_only))  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        raise ConfigError(f"{where} does not exist{_other_files(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where} cannot be read: {error}") from error
    except (yaml.YAMLError, TypeError) as error:
        raise ConfigError(f"{where} is not valid YAML: {one_line(error)}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected a mapping of keys, found {type(tree).__name__}")
    merged: dict[str, Any] = {}
    for base in tree.pop(BASE_KEY, None) or []:
        merge(merged, read_tree(_base_path(path, base), (*seen, str(path)), check_only=check_only))
    return merge(merged, tree)


def merge(into: dict[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings, ``other`` winning; ``into`` is changed and returned."""
    for key, value in other.items():
        if isinstance(value, Mapping) and isinstance(into.get(key), dict):
            merge(into[key], value)
        else:
            into[key] = value
    return into


def data_sets() -> dict[str, type]:
    """The data sets of ppdet by name, with those that a user has derived from them."""
    from ppdet.data.source.dataset import DetDataset  # not above: a script chooses its ppdet

    kinds, found = [DetDataset], {}
    while kinds:
        kind = kinds.pop()
        found[kind.__name__] = kind
        kinds += kind.__subclasses__()
    return found


def _base_path(path: Path, base: str) -> Path:
    base = os.path.expanduser(str(base))
    return Path(base) if os.path.isabs(base) else Path(os.path.normpath(path.parent / base))


def _refuse(loader: Any, node: yaml.Node) -> Any:
    raise yaml.constructor.ConstructorError(
        None, None, f"tag '{node.tag}' may not be used", node.start_mark
    )


def _safe_loader(check_only: bool) -> type[yaml.SafeLoader]:
    """A safe loader that also builds the objects ppdet registered a tag for."""

    class Loader(yaml.SafeLoader):
        pass

    if check_only:
        Loader.add_multi_constructor("!", lambda loader, tag, node: tag)
        Loader.add_constructor(_REFUSED_TAG, _refuse)
        return Loader
    constructors: dict[Any, Any] = yaml.Loader.yaml_constructors
    for tag, constructor in constructors.items():
        if isinstance(tag, str) and tag.startswith("!") and tag != _REFUSED_TAG:
            Loader.add_constructor(tag, constructor)
    for name in data_sets():
        Loader.add_constructor(f"!{name}", _named(name))
    return Loader


def _named(name: str) -> Callable[[Any, yaml.Node], dict[str, Any]]:
    """Reads a data set with a tag as a mapping with ``name``.

    ppdet would build its object at once, and no base or ``-o`` could change single keys.
    """

    def construct(loader: Any, node: yaml.Node) -> dict[str, Any]:
        settings = loader.construct_mapping(node, deep=True) if node.value else {}
        return {"name": name, **settings}

    return construct


def _other_files(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    return nearest(path.name, sorted(p.name for p in path.parent.glob("*.y*ml")))

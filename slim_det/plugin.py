"""Puts slim_det behind ppdet's own names, when ppdet is imported and not before.

The hook waits for ppdet because a script of a PaddleDetection checkout decides itself, after
slim_det was imported, which ppdet package it takes.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

from slim_det.quiet import silenced

script_overrides: list[str] = []
"""``-o`` texts of the script that `python -m slim_det` runs; they win over its slim file."""


def install() -> None:
    """Register with ppdet now if it is imported, else as soon as it is."""
    if "ppdet" in sys.modules:
        _register()
    elif not any(isinstance(finder, _PpdetFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _PpdetFinder())


class _PpdetFinder(importlib.abc.MetaPathFinder):
    """Lets the ordinary import system find ppdet, and registers once it has run."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "ppdet":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader) -> None:
        self._loader = loader

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with silenced():
            self._loader.exec_module(module)
        _register()


def _register() -> None:
    from slim_det.components import register_components

    register_components()

"""Runs a function when a package is imported, and not before.

slim_det waits for ppdet because a script of a PaddleDetection checkout chooses its ppdet package
only after slim_det was imported.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType

from slim_det.core.silence import silenced


def when_imported(package: str, action: Callable[[], None]) -> None:
    """Call ``action`` as soon as a top-level package has been imported; one action a package."""
    if package in sys.modules:
        action()
        return
    waiting = [f for f in sys.meta_path if isinstance(f, _PackageFinder) and f.package == package]
    if not waiting:
        sys.meta_path.insert(0, _PackageFinder(package, action))


class _PackageFinder(importlib.abc.MetaPathFinder):
    """Lets the ordinary import system find a package, and acts once it has been imported."""

    def __init__(self, package: str, action: Callable[[], None]) -> None:
        self.package = package
        self._action = action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self.package:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _ActingLoader(spec.loader, self._action)
        return spec


class _ActingLoader(importlib.abc.Loader):
    def __init__(self, loader: importlib.abc.Loader, action: Callable[[], None]) -> None:
        self._loader = loader
        self._action = action

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with silenced():
            self._loader.exec_module(module)
        self._action()

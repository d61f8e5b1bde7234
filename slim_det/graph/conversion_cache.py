"""Remembers the methods that Paddle has rewritten to trace them.

Paddle keeps rewritten functions by weak references. Those to bound methods end at once, so it would
write and import the code of each layer's ``forward`` anew every time that it is called: more than
half of the time that a trace takes.
"""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

from paddle.jit.dy2static.program_translator import FunctionCache

_rewritten: weakref.WeakKeyDictionary[FunctionType, Any] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def methods_rewritten_once() -> Iterator[None]:
    """While active, Paddle rewrites a method once, not once for each call."""
    original = FunctionCache._convert
    FunctionCache._convert = lambda cache, function: _remembered(function, original, cache)
    try:
        yield
    finally:
        FunctionCache._convert = original


def _remembered(function: Any, convert: Callable[..., Any], cache: FunctionCache) -> Any:
    """What a function was rewritten to, unless a name that it reads has another value today."""
    plain = inspect.unwrap(getattr(function, "__func__", function))
    if not isinstance(plain, FunctionType) or plain.__closure__:
        return convert(cache, function)
    found = _rewritten.get(plain)
    if found is None or not _same_globals(plain, found):
        found = _rewritten[plain] = convert(cache, function)
    return found


def _same_globals(plain: FunctionType, rewritten: Any) -> bool:
    """Whether the names of a function's module are what its rewritten copy was given."""
    given = rewritten.__globals__
    return all(
        given.get(name) is value
        for name, value in plain.__globals__.items()
        if not (name.startswith("__") and name.endswith("__"))
    )

"""Imports without banners: ccache, numba, threads, pkg_resources and the like."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Hide what is printed inside, unless something is raised."""
    noise = io.StringIO()
    try:
        with contextlib.redirect_stdout(noise), contextlib.redirect_stderr(noise):
            yield
    except BaseException:
        sys.stderr.write(noise.getvalue())
        raise
    finally:
        _release_loggers(noise)


@contextlib.contextmanager
def quiet_stdout() -> Iterator[None]:
    """Hide what libraries print to stdout inside."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def _release_loggers(noise: io.StringIO) -> None:
    """Give loggers that hold the silenced stream, as ppdet's do, the real one."""
    for name in list(logging.root.manager.loggerDict):
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is noise:
                handler.setStream(sys.stdout)

"""The process that a command runs in: threads, silence of libraries, logging, last resort."""

from __future__ import annotations

import logging
import os
import sys
import traceback
import warnings

from slim_det.core.silence import silenced

DEBUG_VARIABLE = "SLIM_DET_DEBUG"


def prepare_process(with_paddle: bool = True) -> None:
    """Set what must be set before paddle is imported, import it silently, log to stdout."""
    set_environment()
    log_to_stdout()
    if with_paddle:
        import_silently()


def set_environment() -> None:
    """Threads and silence, for paddle to find when it is imported."""
    # Dygraph runs on one thread unless this is set before paddle is imported.
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    os.environ.setdefault("GLOG_minloglevel", "2")
    warnings.filterwarnings("ignore")


def import_silently() -> None:
    """Import paddle and ppdet without their banners."""
    with silenced():
        import paddle  # noqa: F401
        import ppdet  # noqa: F401


def report_unexpected(program: str, error: Exception) -> int:
    """One line for an error nobody foresaw, and how to see where it came from.

    Returns:
        Exit code 1.
    """
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(type(error), error, error.__traceback__)
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else f"{text[:120]} ... {text[-170:]}"
    print(
        f"{program}: unexpected {type(error).__name__}: {text} "
        f"({DEBUG_VARIABLE}=1 shows the traceback)",
        file=sys.stderr,
    )
    return 1


def log_to_stdout() -> None:
    """Send slim_det's own lines to stdout, once."""
    logger = logging.getLogger("slim_det")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("slim_det: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False

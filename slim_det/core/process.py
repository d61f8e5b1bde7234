"""The process of a command: threads, silence of libraries, logging, unexpected errors."""

from __future__ import annotations

import ctypes
import functools
import gc
import io
import logging
import os
import shutil
import signal
import sys
import traceback
import warnings

from slim_det.core.errors import EngineError, one_line
from slim_det.core.silence import silenced

DEBUG_VARIABLE = "SLIM_DET_DEBUG"

PADDLE_VERSIONS = ">=3.0,<4"
OLD_VERSIONS = ("1", "2")
PADDLEDET = "paddledet==2.6.0"
NO_PINS = (3, 12)
"""The first Python for which paddledet cannot be installed with what it requires."""

_PACKAGES = {
    "PIL": "pillow",
    "cv2": "opencv-python",
    "mpl_toolkits": "matplotlib",
    "pkg_resources": "'setuptools<81'",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Module -> package that has it, where the names differ."""

_PR_SET_PDEATHSIG = 1  # of prctl(2)


def prepare_process(with_paddle: bool = True) -> None:
    """Set what must be set before paddle is imported, import it silently, log to stdout.

    Importing ppdet registers slim_det's components with it (see ``slim_det/__init__.py``).
    """
    set_environment()
    prepare_forks()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name that the terminal cannot show is no error
            stream.reconfigure(errors="backslashreplace")
    log_to_stdout()
    if with_paddle:
        import_paddle()
        import_ppdet()


def import_paddle() -> None:
    """Import paddle silently.

    Raises:
        EngineError: It is missing, broken or too old; the message says which package to install.
    """
    package = "paddlepaddle-gpu" if shutil.which("nvidia-smi") else "paddlepaddle"
    extra = " (pip install 'slim-det[cpu]')" if package == "paddlepaddle" else ""
    remedy = f"install {package} {PADDLE_VERSIONS}{extra}"
    try:
        with silenced():
            import paddle
    except ModuleNotFoundError as error:
        if error.name != "paddle":
            raise EngineError(f"paddle lacks '{error.name}'; {remedy} again") from error
        raise EngineError(f"paddle is not installed; {remedy}") from error
    except Exception as error:  # a library of CUDA that is missing, a wheel for another processor
        raise EngineError(f"paddle cannot be imported ({one_line(error)}); {remedy}") from error
    version = getattr(paddle, "__version__", "0")
    if version.split(".")[0] in OLD_VERSIONS:
        raise EngineError(f"paddle {version} is too old; {remedy}")


def import_ppdet() -> None:
    """Import ppdet silently.

    Raises:
        EngineError: It, or a package that it imports, is missing; the message says which.
    """
    try:
        with silenced():
            import ppdet  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "ppdet":
            raise missing_package(error, "ppdet imports it") from error
        flag = "--no-deps " if sys.version_info >= NO_PINS else ""
        raise EngineError(
            f"ppdet is not installed; run 'pip install {flag}{PADDLEDET}'"
            + (", whose own requirements end at Python 3.11" if flag else "")
        ) from error


def missing_package(error: ModuleNotFoundError, reason: str) -> EngineError:
    """The error of a package that is not installed, with the command that installs it."""
    module = (error.name or "").partition(".")[0]
    return EngineError(
        f"'{module}' is not installed: {reason}; run 'pip install {_PACKAGES.get(module, module)}'"
    )


def set_environment() -> None:
    """Set what paddle reads when it is imported: the number of threads, and the log level."""
    # Dygraph runs on one thread unless this is set before paddle is imported.
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))
    os.environ.setdefault("GLOG_minloglevel", "2")
    warnings.filterwarnings("ignore")


@functools.cache
def prepare_forks() -> None:
    """Let processes that are forked from this one end when it does, and delete nothing of it.

    Paddle's DataLoader forks workers that wait for their next images without a time limit. Those of
    a killed command would keep their memory until the machine is restarted. A worker whose garbage
    collector deletes a reader of this process waits for ever for that reader's threads.
    """
    prctl = ctypes.CDLL(None).prctl
    os.register_at_fork(
        before=gc.freeze,
        after_in_parent=gc.unfreeze,
        after_in_child=lambda: prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),
    )


def report_unexpected(program: str, error: Exception) -> int:
    """Print one line about an unexpected error, and how to see its traceback; returns code 1."""
    if os.environ.get(DEBUG_VARIABLE):
        traceback.print_exception(type(error), error, error.__traceback__)
    text = one_line(error)
    text = text if len(text) <= 300 else f"{text[:120]} ... {text[-170:]}"
    print(
        f"{program}: unexpected {type(error).__name__}: {text} "
        f"({DEBUG_VARIABLE}=1 shows the traceback)",
        file=sys.stderr,
    )
    return 1


def log_to_stdout() -> None:
    """Send slim_det's own log lines to stdout, once."""
    logger = logging.getLogger("slim_det")
    if not logger.handlers:
        handler = logging.StreamHandler(sys.stdout)
        handler.setFormatter(logging.Formatter("slim_det: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False

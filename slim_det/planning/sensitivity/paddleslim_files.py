"""Imports the pickles of PaddleSlim's sensitivity analysis without executing them."""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from pathlib import Path
from typing import Any

from slim_det.core.errors import SensitivityError, one_line
from slim_det.detectors.yolov3_head import YOLO_HEAD_LAYERS, from_historical
from slim_det.planning.sensitivity.fields import Points
from slim_det.planning.sensitivity.result import Conditions, Request, SensitivityResult, Sources

MAX_BYTES = 16 << 20
MAX_STEPS = 1_000_000
"""Limits the time and memory for a pickle; one with 18 layers has about 1000 instructions."""

_EXPECTED = "expected a mapping of layer names to mappings of ratios to losses"

_PLAIN = frozenset(
    "PROTO FRAME STOP MARK EMPTY_DICT DICT SETITEM SETITEMS "
    "STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE "
    "FLOAT BINFLOAT INT BININT BININT1 BININT2 LONG LONG1 "
    "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET".split()
)
"""Pickle instructions that only make dictionaries, text and numbers."""


def read_paddleslim_pickle(path: str | Path) -> SensitivityResult:
    """Read ``sensitivities.data`` of PaddleSlim 1.x.

    The file is a pickle of ``{parameter name: {ratio: loss}}`` with losses as in
    `slim_det.planning.sensitivity.bootstrap.relative_loss`. Nothing in it is executed. Historical
    names become module paths; all other names are kept, so compare them with those of the model.

    Returns:
        The losses; the criterion is l1 norm, as in PaddleSlim. What PaddleSlim does not record is
        None, empty or ``unknown``. Layers of a YOLOv3 head come first, in the order of execution.

    Raises:
        SensitivityError: The file is missing, damaged, larger than 16 MB, or holds anything but
            dictionaries, text and numbers.
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise SensitivityError(
            f"PaddleSlim sensitivity file '{path}' cannot be read: {error.strerror}"
        ) from error
    try:
        _require_plain(content)
        groups = _losses(_load(content))
    except SensitivityError as error:
        raise SensitivityError(f"PaddleSlim sensitivity file '{path}': {error}") from None
    place = {name: index for index, name in enumerate(YOLO_HEAD_LAYERS)}
    order = sorted(groups, key=lambda name: place.get(name, len(place)))
    ratios = sorted({ratio for losses in groups.values() for ratio in losses})
    return SensitivityResult(
        conditions=Conditions("unknown", baseline=None, num_images=None, criterion="l1_norm"),
        sources=Sources(),
        request=Request(group_order=tuple(order), ratios=tuple(ratios)),
        groups=groups,
        ap={},
    )


class _PlainUnpickler(pickle.Unpickler):
    """Refuses to make objects of any class."""

    def find_class(self, module: str, name: str) -> Any:
        raise SensitivityError(_holds(f"{module}.{name}"))

    def persistent_load(self, identity: Any) -> Any:
        raise SensitivityError(_holds("persistent"))


def _require_plain(content: bytes) -> None:
    """Refuse a pickle that makes anything but dictionaries, text and numbers; nothing is run."""
    if len(content) > MAX_BYTES:
        raise SensitivityError(f"is larger than {MAX_BYTES >> 20} MB; {_EXPECTED}")
    texts = ["?", "?"]
    try:
        for step, (opcode, argument, place) in enumerate(pickletools.genops(content)):
            if step == MAX_STEPS:
                raise SensitivityError(f"has more than {MAX_STEPS} instructions; {_EXPECTED}")
            if opcode.name in ("GLOBAL", "INST"):
                raise SensitivityError(_holds(str(argument).replace(" ", ".")))
            if opcode.name == "STACK_GLOBAL":
                raise SensitivityError(_holds(".".join(texts[-2:])))
            if opcode.name not in _PLAIN:
                raise SensitivityError(f"holds {_made_by(opcode.name)}; {_EXPECTED}")
            if isinstance(argument, str):
                texts = [texts[-1], argument]
            # The unpickler allocates memory up to the highest index that is stored.
            if "PUT" in opcode.name and not (type(argument) is int and 0 <= argument <= step):
                raise SensitivityError(f"is damaged at byte {place}; {_EXPECTED}")
    except SensitivityError:
        raise
    except Exception as error:  # pickletools names no set of errors
        raise SensitivityError(
            f"is not a pickle, or is cut short: {one_line(error)[:200]}"
        ) from None


def _load(content: bytes) -> Any:
    """The value of a plain pickle; text from Python 2 is read as UTF-8."""
    try:
        return _PlainUnpickler(io.BytesIO(content), encoding="utf-8").load()
    except SensitivityError:
        raise
    except Exception as error:  # pickle names no set of errors
        raise SensitivityError(f"is damaged: {one_line(error)[:200]}") from None


def _losses(value: Any) -> Points:
    """Losses by module path and ratio."""
    if type(value) is not dict or not value:
        raise SensitivityError(
            f"holds {'nothing' if value == {} else type(value).__name__}; {_EXPECTED}"
        )
    groups: Points = {}
    for name, row in value.items():
        if type(name) is not str or type(row) is not dict:
            raise SensitivityError(f"entry {_shown(name)} holds {type(row).__name__}; {_EXPECTED}")
        path = from_historical(name)
        if path in groups:
            raise SensitivityError(f"{_shown(name)} is given twice, by two names of '{path}'")
        groups[path] = {}
        for ratio, loss in row.items():
            if type(ratio) is not float or not 0 < ratio < 1:
                raise SensitivityError(
                    f"{_shown(name)} has the ratio {_shown(ratio)}; expected above 0 and below 1"
                )
            if type(loss) not in (float, int) or not math.isfinite(loss) or loss > 1:
                raise SensitivityError(
                    f"{_shown(name)} at {ratio:g} has the loss {_shown(loss)}; expected a number "
                    "up to 1"
                )
            groups[path][ratio] = float(loss)
    return groups


def _holds(name: str) -> str:
    """The error for a pickle that needs a class or function; numbers of numpy can be converted."""
    name = one_line(name)[:200]
    if name.startswith("numpy."):
        return (
            f"holds numbers of numpy ({name}), which are not imported; convert them where the "
            "file was made: {name: {float(r): float(l) for r, l in d.items()} "
            "for name, d in data.items()}"
        )
    return f"holds an object ({name}), which could run code; {_EXPECTED}"


def _made_by(opcode: str) -> str:
    kinds = {"LIST": "a list", "TUPLE": "a tuple", "BYTES": "bytes", "NONE": "None", "SET": "a set"}
    return next((kind for part, kind in kinds.items() if part in opcode), f"{opcode} instructions")


def _shown(value: Any) -> str:
    text = one_line(repr(value))[:200]
    return text if len(text) <= 60 else f"{text[:57]}..."

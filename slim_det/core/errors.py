"""Errors a user can act on: one line each, with exit code 2 on the command line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SlimDetError(Exception):
    """Base of all errors that a user can fix: what is wrong, where, what was expected."""


class ConfigError(SlimDetError):
    """A configuration file, override or flag is wrong."""


class LayerError(SlimDetError):
    """A layer name is unknown, ambiguous, or names a layer that cannot be cut."""


class PlanError(SlimDetError):
    """A pruning plan is unreadable, or belongs to another model."""


class SensitivityError(SlimDetError):
    """A file of sensitivities is unreadable, or belongs to another measurement."""


class WeightsError(SlimDetError):
    """A weights file is missing, damaged, or does not fit the model."""


class DataError(SlimDetError):
    """A data set or an image is missing or unusable."""


class QuantError(SlimDetError):
    """A quantization is unreadable, contradicts the weights, or cannot be deployed."""


class ExportError(SlimDetError):
    """An exported model is missing, incomplete, or differs from the model it came from."""


class LatencyError(SlimDetError):
    """A latency table is unreadable, or does not cover a convolution."""


class EngineError(SlimDetError):
    """Paddle is missing, broken or too old."""


class TrainingError(SlimDetError):
    """A training cannot go on: a loss is not finite, or a layer was not run as expected."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of an error line about an unknown name.

    Args:
        name: What the user wrote.
        choices: All valid spellings.

    Returns:
        ``"; did you mean 'x'?"``, or a list of up to eight choices if none is close.
    """
    known = [str(choice) for choice in choices]
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.8)
    # An ending that others have too must not hide the name: `fpgm_norm` is fpgm, not l2_norm.
    close = close or [part for part in known if len(part) > 2 and str(name).startswith(part)]
    close = close or difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean '{close[0]}'?"
    if not known:
        return ""
    shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
    return f"; valid: {shown}"


def reason_of(error: Exception) -> str:
    """What an error of a library says, in one line; its type if it says nothing."""
    return one_line(error) or type(error).__name__


def engine_reason(error: Exception) -> str:
    """What an error of Paddle's C++ code says, in one line, without its hints and stack."""
    said = one_line(error).partition(" [Hint:")[0]
    return said if len(said) <= 160 else "... " + said[-160:].partition(" ")[2]


def one_line(value: object) -> str:
    """An error's message, or any other text, without line breaks."""
    return " ".join(str(value).split())

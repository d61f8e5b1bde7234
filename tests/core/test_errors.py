"""How an error line ends."""

from __future__ import annotations

import pytest

from slim_det.core import errors
from slim_det.core.errors import SlimDetError, engine_reason, nearest


@pytest.mark.parametrize(
    ("name", "choices", "phrase"),
    [
        ("anything", [], ""),
        ("eval", ["eval"], "; did you mean 'eval'?"),
        ("l1norm", ["fpgm", "l1_norm", "l2"], "; did you mean 'l1_norm'?"),
        ("zzz", ["fpgm", "l1_norm"], "; valid: fpgm, l1_norm"),
        ("zzz", "abcdefghi", "; valid: a, b, c, d, e, f, g, h, ..."),
        ("zzz", "abcdefgh", "; valid: a, b, c, d, e, f, g, h"),
        ("fpgm_norm", ["l1_norm", "l2_norm", "fpgm", "slim_norm"], "; did you mean 'fpgm'?"),
        ("l1_norms", ["l1", "l1_norm"], "; did you mean 'l1_norm'?"),
        (7, [77, 123], "; did you mean '77'?"),
    ],
)
def test_nearest(name: object, choices: list[object], phrase: str) -> None:
    assert nearest(name, choices) == phrase


def test_every_kind_is_one_that_the_command_line_catches() -> None:
    kinds = [kind for name, kind in vars(errors).items() if name.endswith("Error")]
    assert len(kinds) >= 7
    assert all(issubclass(kind, SlimDetError) for kind in kinds)


def test_what_the_engine_says() -> None:
    """Without the expression that has failed, and never from the middle of a word."""
    error = RuntimeError("(Unavailable) Cannot read\n  [Hint: Expected is.good() == true]\n (at x)")
    assert engine_reason(error) == "(Unavailable) Cannot read"
    assert engine_reason(ValueError("stack " * 50 + "end")).startswith("... stack stack")

"""Imports without banners; nothing is lost if they fail."""

from __future__ import annotations

import logging
import sys

import pytest

from slim_det.core.silence import silenced


def test_both_streams_are_swallowed(capsys: pytest.CaptureFixture[str]) -> None:
    with silenced():
        print("banner")
        print("warning", file=sys.stderr)
    print("after")
    assert capsys.readouterr() == ("after\n", "")


def test_shown_after_all_where_something_is_raised(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ImportError), silenced():
        print("what the library said")
        raise ImportError
    assert capsys.readouterr() == ("", "what the library said\n")


def test_logger_made_inside_writes_to_the_real_stream(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("tests.quiet")
    logger.propagate = False
    with silenced():
        logger.addHandler(logging.StreamHandler(sys.stdout))
    try:
        logger.warning("heard")
    finally:
        logger.handlers.clear()
    assert capsys.readouterr().out == "heard\n"

"""Errors of readers; tests/integration/test_reader_errors.py has those of commands."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_image_that_is_gone(
    ppdet_registered: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The error says so, and OpenCV prints nothing beside it."""
    from ppdet.data.reader import Compose

    from slim_det.evaluate.readers import StepError

    path = tmp_path / "gone.jpg"
    capfd.readouterr()
    with pytest.raises(StepError, match=f"Decode failed on '{path}': FileNotFoundError"):
        Compose([{"Decode": {}}])({"im_file": str(path)})
    assert capfd.readouterr().err == ""

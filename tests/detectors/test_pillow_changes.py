"""ppdet measures labels with a function that Pillow 10 removed."""

from __future__ import annotations

import pytest
from PIL import Image, ImageDraw

from slim_det.detectors.pillow_changes import follow_pillow


def test_text_has_a_size_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ImageDraw.ImageDraw, "textsize", raising=False)
    follow_pillow()
    width, height = ImageDraw.Draw(Image.new("RGB", (64, 64))).textsize("cell 0.93")
    assert isinstance(width, int) and 20 < width < 120 and 5 < height < 40


def test_a_pillow_that_has_it_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageDraw.ImageDraw, "textsize", "its own", raising=False)
    follow_pillow()
    assert ImageDraw.ImageDraw.textsize == "its own"

"""What ppdet 2.6 expects of Pillow and Pillow 10 no longer has."""

from __future__ import annotations

from typing import Any

from PIL import ImageDraw


def follow_pillow() -> None:
    """Give `ImageDraw` its ``textsize`` again, with which ppdet places the labels of boxes."""
    if not hasattr(ImageDraw.ImageDraw, "textsize"):
        ImageDraw.ImageDraw.textsize = _textsize


def _textsize(self: Any, text: str, *args: Any, **kwargs: Any) -> tuple[int, int]:
    left, top, right, bottom = self.textbbox((0, 0), text, *args, **kwargs)
    return int(right), int(bottom)

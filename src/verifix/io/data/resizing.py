"""Bring an image to a square, in the ways that timm has."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Resizing:
    """How an image is brought to a square.

    Attributes
    ----------
    size
        Its side in pixels.
    share
        Share of the resized image's side that is kept.
    mode
        "center": the shorter side fills the square, and the longer one is cut; "squash": both sides fill it; "border":
        the longer side fills it, and the shorter one is padded.
    interpolation
        A filter of Pillow, in small letters.
    fill
        Colour of the padding, one number from 0 to 255 for each channel; empty for black.

    Notes
    -----
    Pixel for pixel what `timm.data.create_transform` makes, whose rounding this follows.
    """

    size: int
    share: float
    mode: str
    interpolation: str
    fill: tuple[int, ...] = ()

    def of(self, image: Image.Image) -> Image.Image:
        """Return an image, grey or of three colours, as a square of `size`."""
        filled = image.resize(self.scaled(*image.size), Image.Resampling[self.interpolation.upper()])
        square = Image.new(image.mode, (self.size, self.size), self.fill or 0)
        square.paste(filled, (self._offset(filled.width), self._offset(filled.height)))
        return square

    def scaled(self, width: int, height: int) -> tuple[int, int]:
        """Return the width and height that an image is resized to before it is cropped or padded."""
        side = math.floor(self.size / self.share)
        if self.mode == "squash":
            return side, side
        if self.mode == "border":
            ratio = max(width, height) / side
            return round(width / ratio), round(height / ratio)
        return (side, int(side * height / width)) if width <= height else (int(side * width / height), side)

    def _offset(self, length: int) -> int:
        return (self.size - length) // 2 if length < self.size else -round((length - self.size) / 2)

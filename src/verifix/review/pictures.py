"""Samples as people see them: an image that every browser shows, or a text."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from verifix.errors import DataError
from verifix.io.data.images import Images
from verifix.io.data.npz import Arrays
from verifix.io.data.open import reopen
from verifix.io.data.records import Header
from verifix.io.data.text import Texts

LARGEST = 2048
"""Pixels of the longer side of an image as it is shown; larger ones are scaled down."""

LOSSLESS = 512 * 512
"""Pixels up to which an image is sent as PNG; a larger one, as JPEG, is many times smaller."""

KEPT = 512
"""Samples that stay encoded in memory."""

SMALL = 256
"""Pixels of the longer side of an image in the grid."""

LONGEST_TEXT = 100_000
"""Characters of a text that are shown."""


@dataclass(frozen=True)
class Shown:
    """A sample as it is sent to a browser: its media type and content."""

    kind: str
    content: bytes


class Pictures:
    """The samples of a data set, to look at.

    Parameters
    ----------
    dataset
        One that `open_shown` returns.
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset
        self.shown = lru_cache(KEPT)(partial(self._shown, LARGEST))
        self.small = lru_cache(4 * KEPT)(partial(self._shown, SMALL))

    @property
    def texts(self) -> bool:
        """Whether samples are texts."""
        return isinstance(self.dataset, Texts) or (
            isinstance(self.dataset, Arrays) and not _is_image(self.dataset[0][0])
        )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.dataset)

    def _shown(self, side: int, index: int) -> Shown:
        if isinstance(self.dataset, Texts):
            return _text(self.dataset.text(index))
        if isinstance(self.dataset, Arrays):
            x = self.dataset[index][0]
            if not _is_image(x):
                return _text(np.array2string(x.numpy(), threshold=400))
            return _encoded(_drawn(x), side)
        return _encoded(self.dataset.picture(index), side)


def open_shown(header: Header, path: str, pool: str | None = None) -> Pictures:
    """Open the data set of a queue, to look at its samples.

    Parameters
    ----------
    header
        That of the queue.
    path
        The queue, for messages.
    pool
        Where the data set is, if not where the queue says.

    Returns
    -------
    Pictures
        Its samples by index.

    Raises
    ------
    DataError
        If it is not as it was when the queue was written, or cannot be shown.
    """
    dataset: Any = reopen(header, path, pool).dataset
    if not isinstance(dataset, (Images, Texts, Arrays)):
        raise DataError(f"{header.data} is a {type(dataset).__name__}, which cannot be shown")
    return Pictures(dataset)


def _text(text: str) -> Shown:
    return Shown("text/plain; charset=utf-8", text[:LONGEST_TEXT].encode("utf-8", "replace"))


def _is_image(x: Tensor) -> bool:
    return x.ndim == 3 and x.shape[0] in (1, 3) and min(x.shape[1:]) > 1


def _drawn(x: Tensor) -> Image.Image:
    """Return an input as an image: numbers from 0 to 1 as they are, others stretched to that range."""
    low, high = float(x.min()), float(x.max())
    if low < 0 or high > 1:
        x = (x - low) / max(high - low, 1e-12)
    pixels = (255 * x.float()).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _encoded(image: Image.Image, side: int) -> Shown:
    if max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side))
    if image.mode not in ("L", "RGB"):
        image = _on_white(image)
    kind = "PNG" if image.width * image.height <= LOSSLESS else "JPEG"
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"compress_level": 1} if kind == "PNG" else {"quality": 92}))
    return Shown(Image.MIME[kind], buffer.getvalue())


def _on_white(image: Image.Image) -> Image.Image:
    """Return an image in colour, its transparent parts white."""
    rgba = image.convert("RGBA")
    paper = Image.new("RGBA", rgba.size, "white")
    paper.alpha_composite(rgba)
    return paper.convert("RGB")

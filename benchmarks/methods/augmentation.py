"""Weak and strong changes of inputs that their labels survive.

Weak: images ``[n, channels, h, w]`` are shifted by up to an eighth of their size, and half of them may be mirrored;
rows of tables ``[n, d]`` get noise of a twentieth of each column's spread. Strong: images are changed weakly, and get
noise, another contrast and brightness, and a grey square of half their size; rows of tables get noise of a quarter of
the spread, and a fifth of their entries from another row.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

SHIFT = 8
"""One over the longest shift, relative to the size of an image."""

WEAK_NOISE, STRONG_NOISE, IMAGE_NOISE = 0.05, 0.25, 0.2
"""Relative to the spread: of a column, or of all pixels."""

SWAPPED = 0.2
"""Share of the entries of a row that come from another one."""

CONTRAST = 0.4
"""Contrast between 1 − this and 1 + this; brightness moves by as much of the spread."""


def can_change(inputs: Any) -> bool:
    """Tell whether inputs are images or tables of numbers."""
    return isinstance(inputs, Tensor) and inputs.is_floating_point() and inputs.ndim in (2, 4)


class Augmentation:
    """Changes of inputs.

    Parameters
    ----------
    inputs
        Inputs that give the spread: images ``[n, channels, h, w]`` or tables ``[n, d]``.
    mirrored
        Whether images may be mirrored.
    generator
        Where chance comes from.
    """

    def __init__(self, inputs: Tensor, mirrored: bool, generator: torch.Generator) -> None:
        self.images = inputs.ndim == 4
        self.spread = inputs.std() if self.images else inputs.std(dim=0)
        self.middle = inputs.mean()
        self.mirrored, self.generator = mirrored, generator

    def weak(self, x: Tensor) -> Tensor:
        """Return inputs that are a little changed."""
        if not self.images:
            return x + WEAK_NOISE * self.spread * self._normal(x)
        shifted_ = shifted(x, max(x.shape[-1] // SHIFT, 1), self.generator)
        if not self.mirrored:
            return shifted_
        turn = torch.rand(len(x), 1, 1, 1, generator=self.generator) < 0.5
        return torch.where(turn, shifted_.flip(3), shifted_)

    def strong(self, x: Tensor) -> Tensor:
        """Return inputs that are changed a lot."""
        if not self.images:
            swap = torch.rand(x.shape, generator=self.generator) < SWAPPED
            other = x[torch.randperm(len(x), generator=self.generator)]
            return torch.where(swap, other, x) + STRONG_NOISE * self.spread * self._normal(x)
        factor, step = 2 * torch.rand(2, len(x), 1, 1, 1, generator=self.generator) - 1
        changed = self.middle + (1 + CONTRAST * factor) * (self.weak(x) - self.middle) + CONTRAST * step * self.spread
        noisy = changed + IMAGE_NOISE * self.spread * self._normal(x)
        return torch.where(squares(x, self.generator), self.middle, noisy)

    def _normal(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.generator, dtype=x.dtype)


def shifted(x: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Shift each image ``[n, channels, h, w]`` by up to `most` pixels each way; the border is repeated."""
    n, channels, height, width = x.shape
    padded = F.pad(x, [most] * 4, mode="replicate")
    down, right = torch.randint(0, 2 * most + 1, (2, n, 1), generator=generator)
    rows, columns = down + torch.arange(height), right + torch.arange(width)
    image, channel = torch.arange(n)[:, None, None, None], torch.arange(channels)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def squares(x: Tensor, generator: torch.Generator) -> Tensor:
    """Return where a square of half the size lies in each image, bool ``[n, 1, h, w]``; a part may lie outside."""
    masks = []
    for size in x.shape[2:]:
        centre = torch.randint(0, size, (len(x), 1), generator=generator)
        masks.append((torch.arange(size) - centre).abs() <= size // 4)
    return (masks[0][:, :, None] & masks[1][:, None, :])[:, None]

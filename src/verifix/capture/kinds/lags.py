"""XᵀX of the patches of a convolution with stride 1, without making the patches.

Patches overlap, so XᵀX repeats itself: with x(u) ``[C]`` the pixel at u, the block of the filter's taps a and b is

    Σ over positions o of x(o + a) x(o + b)ᵀ = Σ over pixels u = o + a of x(u) x(u + (b − a))ᵀ.

It depends on the lag b − a, and on which pixels tap a sees. Along each axis the pixels fall into stretches that the
same taps see (for a 3 × 3 filter with padding 1: the first, the last, and all between). So one product of C × C per
lag and per box of stretches is made, and added to every block that it belongs to. Half of the lags suffice; the others
give the transposed blocks. A 3 × 3 filter takes about 13 C² multiplications per pixel in place of 81 C². Everything is
a sum: nothing is subtracted.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifix.moments import Moments, product, rescaled, within_float32

COPY_BYTES = 64 * 2**20
"""Pixels are copied in pieces of about this many bytes."""

FEWEST_CHANNELS = 8
"""Below so many channels per group the products are too narrow, and unfolding is faster."""

OVERHEAD = 50_000
"""What a call costs, in multiplications."""


def positions_along(size: int, kernel: int, pads: tuple[int, int], gap: int) -> int:
    """Return the number of positions of a filter along one axis, with stride 1; `gap` is the dilation."""
    return size + sum(pads) - gap * (kernel - 1)


@dataclass(frozen=True)
class Geometry:
    """Where a convolution with stride 1 looks.

    Attributes
    ----------
    space
        Sizes of the input along its spatial axes.
    kernel, pads, dilation
        As in `verifix.capture.kinds.convolution.unfold`.
    """

    space: tuple[int, ...]
    kernel: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]

    @property
    def taps(self) -> int:
        """Elements of the filter per pair of channels."""
        return torch.Size(self.kernel).numel()

    @property
    def positions(self) -> int:
        """Output positions per sample."""
        axes = zip(self.space, self.kernel, self.pads, self.dilation, strict=True)
        return torch.Size([positions_along(*axis) for axis in axes]).numel()


@dataclass(frozen=True)
class Patches:
    """The input of a convolution with stride 1 in place of its patches.

    Attributes
    ----------
    x
        ``[samples, C_in, *space]``.
    groups
        Convolution groups.
    geometry
        Where it looks.
    """

    x: Tensor
    groups: int
    geometry: Geometry

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the patches as rows: groups, number and width."""
        width = self.x.shape[1] // self.groups * self.geometry.taps
        return self.groups, len(self.x) * self.geometry.positions, width

    @property
    def worthwhile(self) -> bool:
        """Whether this takes less time than making the patches, by the multiplications of both ways."""
        groups, rows, width = self.shape
        channels = width // self.geometry.taps
        if self.geometry.taps == 1 or channels < FEWEST_CHANNELS:
            return False
        found = boxes(self.geometry)
        pixels = len(self.x) * sum(box.pixels for box in found)
        return groups * channels**2 * (pixels + 2 * len(found)) + OVERHEAD * len(found) < groups * width**2 * (rows + 2)


@dataclass(frozen=True)
class Box:
    """Pixels that the same taps see, and the same pixels moved by a lag.

    Attributes
    ----------
    here, there
        Where they begin and end along each spatial axis.
    blocks
        The blocks ``(a, b)`` of taps, counted through the filter, that their product belongs to.
    """

    here: tuple[tuple[int, int], ...]
    there: tuple[tuple[int, int], ...]
    blocks: tuple[tuple[int, int], ...]

    @property
    def pixels(self) -> int:
        """How many pixels of a sample it holds."""
        return torch.Size([stop - start for start, stop in self.here]).numel()


class LagSums:
    """Sums of products of pixels per lag and box; see the top of this module.

    Parameters
    ----------
    patches
        The first patches, which are not added yet; all others have the same geometry.
    """

    def __init__(self, patches: Patches) -> None:
        self.geometry, self.groups, self.n = patches.geometry, patches.groups, 0
        self.channels = patches.x.shape[1] // patches.groups
        self._like = patches.x.new_zeros(self.groups, self.channels, self.channels, dtype=torch.float64)
        self._sums = [self._like.clone() for _ in boxes(patches.geometry)]

    def add_(self, patches: Patches) -> None:
        """Take in further patches."""
        self.n += patches.shape[1]
        size = max(1, COPY_BYTES // max(patches.x[:1].numel() * patches.x.element_size(), 1))
        for piece in patches.x.split(size):
            # Samples behind the first axis: stretches along it are then views, and only those along others are copied.
            x = piece.unflatten(1, (self.groups, self.channels)).movedim((1, 0, 2), (0, -2, -1)).contiguous()
            x, scale = within_float32(x)
            pixels = functools.cache(functools.partial(_stretch, x))
            for box, total in zip(boxes(self.geometry), self._sums, strict=True):
                here, there = (pixels(own[1:])[:, slice(*own[0])].flatten(1, -2) for own in (box.here, box.there))
                total.add_(rescaled(product(here, there), scale))

    def moments(self) -> Moments:
        """Return the moments of all patches: XᵀX is put together from its blocks."""
        taps, width = self.geometry.taps, self.channels * self.geometry.taps
        blocks = self._like.new_zeros(self.groups, taps, taps, self.channels, self.channels)
        for box, total in zip(boxes(self.geometry), self._sums, strict=True):
            for a, b in box.blocks:
                blocks[:, a, b] += total
                if a != b:
                    blocks[:, b, a] += total.mT
        return Moments.from_gram(blocks.permute(0, 3, 1, 4, 2).reshape(self.groups, width, width), self.n)


def _stretch(x: Tensor, where: tuple[tuple[int, int], ...]) -> Tensor:
    """Return ``[groups, *space, samples, C]`` cut along all spatial axes but the first."""
    return x[(slice(None), slice(None), *(slice(*ends) for ends in where))].contiguous()


@functools.lru_cache(maxsize=256)
def boxes(geometry: Geometry) -> tuple[Box, ...]:
    """Return all boxes of one half of the lags.

    Parameters
    ----------
    geometry
        Where the convolution looks.

    Returns
    -------
    tuple of Box
        Each of C × C products to be summed; together they make up every block of XᵀX.
    """
    axes = list(zip(geometry.space, geometry.kernel, geometry.pads, geometry.dilation, strict=True))
    found = []
    for lag in itertools.product(*(range(1 - k, k) for k in geometry.kernel)):
        if lag < (0,) * len(lag):
            continue  # the transposed half
        stretches = [_stretches(step, *axis) for step, axis in zip(lag, axes, strict=True)]
        for choice in itertools.product(*stretches):
            here = tuple((start, stop) for start, stop, _ in choice)
            moves = [step * gap for step, gap in zip(lag, geometry.dilation, strict=True)]
            there = tuple((start + move, stop + move) for (start, stop), move in zip(here, moves, strict=True))
            taps = itertools.product(*(own for _, _, own in choice))
            blocks = tuple(
                (_number(a, geometry.kernel), _number([i + j for i, j in zip(a, lag, strict=True)], geometry.kernel))
                for a in taps
            )
            found.append(Box(here, there, blocks))
    return tuple(found)


def _stretches(
    lag: int, size: int, kernel: int, pads: tuple[int, int], gap: int
) -> list[tuple[int, int, tuple[int, ...]]]:
    """Return, along one axis, where pixels begin and end that the same taps see together with the pixels at a lag."""
    outputs = positions_along(size, kernel, pads, gap)
    seen = {}
    for tap in range(max(0, -lag), min(kernel, kernel - lag)):
        first = gap * tap - pads[0]  # the pixel that this tap sees from the first position
        start, stop = max(0, first, -gap * lag), min(size, outputs + first, size - gap * lag)
        if start < stop:
            seen[tap] = (start, stop)
    edges = sorted({edge for ends in seen.values() for edge in ends})
    parts = (
        (start, stop, tuple(tap for tap, (low, high) in seen.items() if low <= start and stop <= high))
        for start, stop in itertools.pairwise(edges)
    )
    return [part for part in parts if part[2]]


def _number(tap: Sequence[int], kernel: Sequence[int]) -> int:
    """Count a tap through the filter, the last axis first."""
    return functools.reduce(lambda total, pair: total * pair[1] + pair[0], zip(tap, kernel, strict=True), 0)

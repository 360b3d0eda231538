"""XᵀX of the patches of a convolution with stride 1, without making the patches.

Patches overlap, so XᵀX repeats itself: with x(u) ``[C]`` the pixel at u, the block of the filter's taps a and b is

    Σ over positions o of x(o + a) x(o + b)ᵀ = Σ over pixels u = o + a of x(u) x(u + (b − a))ᵀ.

It depends on the lag b − a, and on which pixels tap a sees. Along each axis the pixels fall into stretches that the
same taps see (for a 3 × 3 filter with padding 1: the first, the last, and all between). So one product of C × C per
lag and per box of stretches is made, and added to every block that it belongs to. Half of the lags suffice; the others
give the transposed blocks. A 3 × 3 filter takes about 13 C² multiplications per pixel in place of 81 C². Everything is
a sum: nothing is subtracted.

A box is cut out of the map, which copies it along every axis but the first. Where a box holds all pixels that have
another at its lag, a map with zeros behind each line does without: the lag is then a shift of the flat map, and what
runs over the end of a line meets zeros.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from verifix.moments import Moments, product, rescaled, within_float32

PIXELS = 8192
"""About so many pixels are multiplied at once: enough for fast products, few enough to stay near the processor."""

LINES = 16
"""Lines of channels of which XᵀX is put together at once."""

FEWEST_CHANNELS = 8
"""Below so many channels per group the products are too narrow, and unfolding is faster."""

OVERHEAD = 50_000
"""What a call costs, in multiplications."""

MOST_ZEROS = 1 / 15
"""Zeros behind the lines, as a part of the pixels, up to which multiplying them takes less time than cutting."""


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
    def pixels(self) -> int:
        """Pixels per sample."""
        return torch.Size(self.space).numel()

    @property
    def positions(self) -> int:
        """Output positions per sample."""
        axes = zip(self.space, self.kernel, self.pads, self.dilation, strict=True)
        return torch.Size([positions_along(*axis) for axis in axes]).numel()

    @property
    def lines(self) -> tuple[int, ...]:
        """Sizes of all axes but the first, with zeros behind the pixels where that pays; see `_Pixels`."""
        inner = self.space[1:]
        longer = tuple(size + k - 1 for size, k in zip(inner, self.kernel[1:], strict=True))
        few = torch.Size(longer).numel() <= (1 + MOST_ZEROS) * torch.Size(inner).numel()
        # With a dilation there may be pixels that no tap sees. They need not be finite, and must not meet the zeros.
        return longer if few and set(self.dilation) == {1} else inner


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
    whole
        Whether, along all axes but the first, it holds every pixel that has another at the lag.
    """

    here: tuple[tuple[int, int], ...]
    there: tuple[tuple[int, int], ...]
    blocks: tuple[tuple[int, int], ...]
    whole: bool

    @property
    def pixels(self) -> int:
        """How many pixels of a sample it holds."""
        return torch.Size([stop - start for start, stop in self.here]).numel()


class PatchMoments(Moments):
    """Second moments of patches, as sums per lag and box; XᵀX is put together whenever it is asked for.

    That is less to keep, to add to and to merge: 29 C² numbers for a 3 × 3 filter in place of 81 C².

    Parameters
    ----------
    patches
        The first patches.
    """

    def __init__(self, patches: Patches) -> None:
        self.groups, _, self.width = patches.shape
        self.n = 0
        self.geometry, self.channels = patches.geometry, patches.x.shape[1] // patches.groups
        shape = len(boxes(patches.geometry)), self.groups, self.channels, self.channels
        self._totals = patches.x.new_zeros(shape, dtype=torch.float64)
        self._waiting: list[Tensor] = []
        self.add_patches_(patches)

    def add_patches_(self, patches: Patches) -> None:
        """Take in further patches of the same geometry."""
        self.n += patches.shape[1]
        waiting = sum(map(len, self._waiting)) + len(patches.x)
        if waiting * self.geometry.pixels < PIXELS:
            self._waiting.append(patches.x.clone())
        else:
            self._multiply(patches.x)

    @property
    def _sums(self) -> Tensor:
        """The sums ``[boxes, groups, C, C]`` of all patches."""
        self._multiply()
        return self._totals

    def _multiply(self, *more: Tensor) -> None:
        """Add the products of the pixels that wait, and of further ones."""
        waiting, self._waiting = self._waiting, []
        for x in (*((torch.cat(waiting),) if waiting else ()), *more):
            for piece in x.split(max(1, PIXELS // (self.geometry.space[0] * torch.Size(self.geometry.lines).numel()))):
                self._add(piece)

    def _add(self, x: Tensor) -> None:
        x, scale = within_float32(x)
        pixels = _Pixels(x.unflatten(1, (self.groups, self.channels)), self.geometry)
        for box, total in zip(boxes(self.geometry), self._totals, strict=True):
            total.add_(rescaled(product(*pixels.pair(box)), scale))

    @property
    def rows(self) -> None:
        """None: patches are never made."""

    @property
    def has_rows(self) -> bool:
        """No rows, so none are there."""
        return False

    @property
    def gram(self) -> Tensor:
        """``XᵀX`` ``[groups, d_in, d_in]``."""
        sums, taps = self._sums, self.geometry.taps
        straight, turned = _places(self.geometry).to(sums.device)
        result = sums.new_empty(self.groups, self.channels, taps, self.channels, taps)
        for group in range(self.groups):
            for c in range(0, self.channels, LINES):
                lines = slice(c, c + LINES)
                # Each block is a sum of some boxes' products, or of their transposes: that is a product with 0 and 1.
                blocks = sums[:, group, lines].flatten(1).mT @ straight
                blocks += sums[:, group, :, lines].mT.flatten(1).mT @ turned
                result[group, lines] = blocks.unflatten(0, (-1, self.channels)).unflatten(2, (taps, taps)).movedim(2, 1)
        return result.reshape(self.groups, self.width, self.width)

    @property
    def trace(self) -> Tensor:
        """``‖X‖²_F`` per group, ``[groups]``."""
        own = [sum(a == b for a, b in box.blocks) for box in boxes(self.geometry)]
        sums = self._sums.diagonal(dim1=2, dim2=3).sum(dim=2)
        return (sums * torch.tensor(own, dtype=sums.dtype, device=sums.device)[:, None]).sum(dim=0)

    def condense_(self) -> Moments:
        """Multiply what waits; returns this object."""
        self._multiply()
        return self

    @property
    def tensors(self) -> list[Tensor]:
        """What is held: the sums per lag and box."""
        return [self._sums]

    def holding(self, tensors: list[Tensor]) -> PatchMoments:
        """Return the same moments with other sums."""
        other = copy.copy(self)
        (other._totals,), other._waiting = tensors, []
        return other

    def add_(self, *rows: Tensor) -> Moments:
        """Refuse rows, which have another form: merge with their own moments."""
        raise NotImplementedError("rows are merged as Moments, with +")

    def __add__(self, other: Moments) -> Moments:
        """Merge with the moments of other patches or rows of the same layer."""
        if isinstance(other, PatchMoments) and other.geometry == self.geometry:
            both = self.holding([self._sums + other._sums])
            both.n += other.n
            return both
        return super().__add__(other)


class _Pixels:
    """Pixels ``[samples, groups, C, *space]``, of which boxes are taken as matrices."""

    def __init__(self, x: Tensor, geometry: Geometry) -> None:
        # Samples behind the first axis: stretches along it are then views.
        x = x.movedim((1, 3, 0, 2), (0, 1, 2, -1))
        self._flat = geometry.lines != geometry.space[1:]
        if self._flat:
            self.x = x.new_zeros(*x.shape[:3], *geometry.lines, x.shape[-1])
            inside: tuple[Any, ...] = (..., *(slice(size) for size in geometry.space[1:]), slice(None))
            self.x[inside] = x
        else:
            self.x = x.contiguous()
        self._cut: dict[tuple[tuple[int, int], ...], Tensor] = {}

    def pair(self, box: Box) -> tuple[Tensor, Tensor]:
        """Return the pixels of a box, and those at its lag, ``[groups, n, C]`` each."""
        if self._flat and box.whole:
            return self._shifted(box)
        here, there = (self._along_others(own[1:])[:, slice(*own[0])].flatten(1, -2) for own in (box.here, box.there))
        return here, there

    def _shifted(self, box: Box) -> tuple[Tensor, Tensor]:
        """Return both as parts of the flat map; where one of them is no pixel of the box, the other is zero."""
        flat, line = self.x.flatten(1, -2), self.x.shape[2:-1].numel()
        inner = zip(box.here[1:], box.there[1:], self.x.shape[3:-1], strict=True)
        move = functools.reduce(lambda total, axis: total * axis[2] + axis[1][0] - axis[0][0], inner, 0)
        shift = (box.there[0][0] - box.here[0][0]) * line + move  # not negative: that half of the lags is left out
        start, stop = box.here[0][0] * line, min(box.here[0][1] * line, flat.shape[1] - shift)
        return flat[:, start:stop], flat[:, start + shift : stop + shift]

    def _along_others(self, where: tuple[tuple[int, int], ...]) -> Tensor:
        """Return ``[groups, first, samples, …, C]`` cut along all spatial axes but the first."""
        if where not in self._cut:
            box: tuple[Any, ...] = (..., *(slice(*ends) for ends in where), slice(None))
            self._cut[where] = self.x[box].contiguous()
        return self._cut[where]


@functools.lru_cache(maxsize=256)
def _places(geometry: Geometry) -> Tensor:
    """Return 1 where a box's product, or its transpose, belongs to a block: ``[2, boxes, taps · taps]``."""
    found = torch.zeros(2, len(boxes(geometry)), geometry.taps, geometry.taps, dtype=torch.float64)
    for i, box in enumerate(boxes(geometry)):
        for a, b in box.blocks:
            found[0, i, a, b] = 1
            found[1, i, b, a] = float(a != b)
    return found.flatten(2)


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
            inner = zip(here[1:], moves[1:], geometry.space[1:], strict=True)
            whole = all(ends == (max(0, -move), min(size, size - move)) for ends, move, size in inner)
            found.append(Box(here, there, blocks, whole))
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

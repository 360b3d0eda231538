"""How much memory moments take, and which layers share a pass over the samples where it has a limit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from verifix.capture.layer import Layer
from verifix.errors import UsageError


@dataclass(frozen=True)
class Limits:
    """What the moments may take.

    Attributes
    ----------
    memory
        Bytes for moments and the work on one layer; None for no limit.
    rows
        Rows of a layer, over all samples; None for all of them.
    seed
        Seed of the draw of rows.
    sets
        How many sets of moments share the memory: those of verified samples, of jittered copies, of unlabelled inputs.
    """

    memory: int | None = None
    rows: int | None = None
    seed: int = 0
    sets: int = 1

    @property
    def of_each(self) -> float:
        """Bytes for one set; infinite without a limit."""
        return math.inf if self.memory is None else self.memory // self.sets


@dataclass(frozen=True)
class LayerSize:
    """What one sample brings to a layer.

    Attributes
    ----------
    groups, width, outputs
        Of the weight ``[groups, outputs, width]``.
    rows
        Rows per sample.
    itemsize
        Bytes of a number in a row that is kept.
    """

    groups: int
    width: int
    outputs: int
    rows: float
    itemsize: int = 4

    def moments(self, samples: float, in_all: float) -> int:
        """Return the bytes of the moments of some samples, if those of `in_all` samples will be merged."""
        rows = self.rows * samples
        wide = max(self.rows * in_all, rows) < self.width
        return math.ceil(self.groups * self.width * (self.itemsize * rows if wide else 8 * self.width))

    def workspace(self, samples: float) -> int:
        """Return the bytes that merging moments and projecting take, beside the moments; see `verifix.projection`."""
        rows = min(self.rows * samples, self.width)
        weights = 4 * 8 * self.width * self.outputs
        if rows < self.width:  # rows as they are and in float64, three matrices [rows, rows]
            return math.ceil(self.groups * (rows * self.width * (self.itemsize + 8) + 3 * 8 * rows**2 + weights))
        return self.groups * (4 * 8 * self.width**2 + weights)  # XᵀX, C, the system and its factor

    def factors(self, samples: float) -> int:
        """Return the bytes of what all strengths share, which is kept while one is chosen."""
        rows = min(self.rows * samples, self.width)
        weights = 8 * self.width * self.outputs
        if rows < self.width:  # and the products of all rows, in float32
            return math.ceil(self.groups * (8 * rows * (self.width + self.outputs + rows) + 4 * rows**2 + weights))
        return self.groups * (8 * self.width**2 + 2 * weights)


def size_of(layer: Layer, groups: int, width: int, rows: float, itemsize: int = 4) -> LayerSize:
    """Return the size of a layer whose rows ``[groups, n, width]`` have been seen; see `LayerSize`."""
    return LayerSize(groups, width, math.prod(layer.shape) // (groups * width), rows, itemsize)


@dataclass(frozen=True)
class MemoryPlan:
    """How the moments of all layers are collected.

    Attributes
    ----------
    groups
        Layers that share a pass, in the order of the passes.
    at_once
        Bytes held in memory at once, beside the model and one batch.
    weights
        Bytes of the weights before and after the correction, which no limit changes.
    in_file
        Bytes of moments that wait in a temporary file; 0 if all are held in memory.
    """

    groups: tuple[tuple[Layer, ...], ...]
    at_once: int
    weights: int
    in_file: int = 0

    @property
    def passes(self) -> int:
        """Number of passes over the samples."""
        return len(self.groups)

    @property
    def line(self) -> str:
        """The plan in one sentence."""
        passes = "one pass" if self.passes == 1 else f"{self.passes} passes"
        groups = "" if self.passes == 1 else ", one per group of layers,"
        waiting = f"; {spelled(self.in_file)} wait in a temporary file" if self.in_file else ""
        return (
            f"The moments take {passes} over the samples{groups} and {spelled(self.at_once)} at once, besides the "
            f"model and {spelled(self.weights)} for old and new weights{waiting}."
        )


def planned(
    sizes: Mapping[Layer, LayerSize],
    samples: int,
    folds: int,
    limits: Limits | None = None,
    shared: Mapping[Layer, Layer] = MappingProxyType({}),
) -> MemoryPlan:
    """Split the layers into groups whose moments of one fold fit into the memory.

    Parameters
    ----------
    sizes
        The layers, in the order of first use.
    samples, folds
        Number of verified samples, and of folds of nearly equal size: one if no strength is chosen.
    limits
        The memory; none by default.
    shared
        Layers whose moments are those of another one, and which that is.

    Returns
    -------
    MemoryPlan
        One group if all moments of all folds fit, as they do without a limit.

    Raises
    ------
    UsageError
        If the memory is too small for one layer alone; names it, and what would do.
    """
    limits = limits or Limits()
    if limits.rows is not None:
        shared = {}  # each draws its own
        sizes = {layer: replace(size, rows=min(size.rows, limits.rows / samples)) for layer, size in sizes.items()}
    first = {layer: i for i, layer in enumerate(sizes)}
    sizes = {layer: sizes[layer] for layer in sorted(sizes, key=lambda layer: first[shared.get(layer, layer)])}
    chosen = folds > 1 and limits.memory is None  # among strengths, for which factors of all layers are kept
    of_fold = math.ceil(samples / folds)
    others = samples - of_fold if folds > 1 else samples
    one = {layer: 0 if layer in shared else size.moments(of_fold, others) for layer, size in sizes.items()}
    space = max((size.workspace(samples) for size in sizes.values()), default=0)
    moments = folds * sum(one.values())
    weights = sum(3 * size.itemsize * size.groups * size.width * size.outputs for size in sizes.values())
    if limits.memory is None or moments + space <= limits.of_each:
        kept = sum(size.factors(samples) for size in sizes.values()) if chosen else 0
        return MemoryPlan((tuple(sizes),), moments + kept + space, weights)
    largest = max(one, key=one.__getitem__)
    if one[largest] + space > limits.of_each:
        raise UsageError(
            f"memory is {spelled(limits.memory)}, but layer {largest.parameter!r} alone takes "
            f"{spelled(limits.sets * (one[largest] + space))}; give that much, lower max_rows, or exclude wide layers"
        )
    groups: list[list[Layer]] = []
    for layer, size in one.items():
        if not groups or sum(one[x] for x in groups[-1]) + size + space > limits.of_each:
            groups.append([])
        groups[-1].append(layer)
    held = max(sum(one[x] for x in group) for group in groups)
    return MemoryPlan(tuple(map(tuple, groups)), held + space, weights, moments)


def spelled(size: float) -> str:
    """Write a number of bytes out for reading, rounded up: what it says is enough."""
    unit, bytes_ = next((pair for pair in (("GB", 1e9), ("MB", 1e6)) if size >= pair[1]), ("kB", 1e3))
    return f"{math.ceil(10 * size / bytes_) / 10:g} {unit}"

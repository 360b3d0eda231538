"""Samples in memory as a few arrays, where a list of them would be millions of small objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.data import TensorDataset

BLOCK = 1024
"""Samples of one array."""

MOST_LEAVES = 16
"""Tensors and numbers of a sample up to which it is packed."""

OBJECT_BYTES = 500
"""What a tensor of a sample takes beside its values, if it stays as it is."""

Block: TypeAlias = "tuple[list[Tensor], Any, list[bool]] | list[Any]"
"""Stacked tensors, their nest, and which of them were plain numbers; or samples as they are."""


class Rows(Sequence[Any]):
    """Samples whose inputs and labels are the rows of tensors.

    Parameters
    ----------
    inputs
        A tensor ``[n, …]``, or a tuple or dictionary of such.
    labels
        ``[n]``.
    """

    def __init__(self, inputs: Any, labels: Tensor) -> None:
        self.inputs = inputs
        self.labels = labels

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    def __getitem__(self, index: Any) -> Any:
        """Return one sample, as a view."""
        if isinstance(self.inputs, Mapping):
            return {name: x[index] for name, x in self.inputs.items()}, self.labels[index]
        if isinstance(self.inputs, tuple):
            return tuple(x[index] for x in self.inputs), self.labels[index]
        return self.inputs[index], self.labels[index]

    def batch(self, indices: Sequence[int] | slice) -> tuple[Any, Tensor]:
        """Return some samples as torch puts them into a batch."""
        rows = indices if isinstance(indices, slice) else torch.as_tensor(indices, device=self.labels.device)
        inputs, labels = self[rows]
        return list(inputs) if isinstance(inputs, tuple) else inputs, labels


def rows_of(dataset: Any) -> Rows | None:
    """Return the rows of a data set that is tensors in memory; None for any other."""
    plain = isinstance(dataset, TensorDataset) and type(dataset).__getitem__ is TensorDataset.__getitem__
    if plain and len(dataset.tensors) == 2 and all(map(_is_plain, dataset.tensors)) and dataset.tensors[1].ndim == 1:
        return Rows(*dataset.tensors)
    rows = getattr(dataset, "items", None)
    return rows if isinstance(rows, Rows) else None


def are_rows(inputs: Any, labels: Tensor) -> bool:
    """Tell whether inputs and labels can be rows: dense tensors, alone or in a flat tuple or dictionary."""
    every = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else (inputs,)
    return all(map(_is_plain, (*every, labels)))


def _is_plain(x: object) -> bool:
    return type(x) is Tensor and x.layout is torch.strided and not x.is_nested and not x.requires_grad


class Packed(Sequence[Any]):
    """Samples that are added one after the other; those of one form are stacked, block by block.

    Parameters
    ----------
    most
        Bytes up to which they are kept; once they take more, none is.

    Attributes
    ----------
    held
        Bytes that all samples take that were added.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self._blocks: list[Block] = []
        self._ends: list[int] = []
        self._open: list[tuple[list[Any], Any]] = []

    def __len__(self) -> int:
        """Return the number of samples."""
        return (self._ends[-1] if self._ends else 0) + len(self._open)

    def __getitem__(self, index: Any) -> Any:
        """Return one sample, whose tensors are views."""
        index = range(len(self))[index]
        block = int(np.searchsorted(self._ends, index, side="right"))
        if block == len(self._blocks):
            return tree_unflatten(*self._open[index - (self._ends[-1] if self._ends else 0)])
        place = index - (self._ends[block - 1] if block else 0)
        return _taken(self._blocks[block], place)

    def add(self, item: Any) -> None:
        """Add a sample."""
        if not self.whole:
            return
        leaves, form = tree_flatten(item)
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        self.held += sum(x.numel() * x.element_size() for x in tensors)
        if not _packable(leaves):
            self.held += OBJECT_BYTES * len(tensors)
        if not self.whole:
            self._blocks, self._ends, self._open = [], [], []
            return
        if self._open and not _alike(self._open[0], (leaves, form)):
            self._close()
        self._open.append((leaves, form))
        if len(self._open) == BLOCK:
            self._close()

    @property
    def whole(self) -> bool:
        """Whether all samples that were added are there."""
        return self.held <= self.most

    def _close(self) -> None:
        """Stack the samples that were added last."""
        leaves, form = self._open[0]
        block: Block
        if _packable(leaves):
            columns = zip(*(own for own, _ in self._open), strict=True)
            stacked = [torch.stack(x) if isinstance(x[0], Tensor) else torch.tensor(x) for x in columns]
            block = stacked, form, [not isinstance(x, Tensor) for x in leaves]
        else:
            block = [tree_unflatten(*each) for each in self._open]
        self._ends.append(len(self))
        self._blocks.append(block)
        self._open = []


def _taken(block: Block, place: int) -> Any:
    if isinstance(block, list):
        return block[place]
    columns, form, plain = block
    return tree_unflatten([x[place].item() if bare else x[place] for x, bare in zip(columns, plain, strict=True)], form)


def _packable(leaves: Sequence[Any]) -> bool:
    def fits(x: Any) -> bool:
        return (type(x) is int and abs(x) < 2**63) or (_is_plain(x) and x.device.type == "cpu")

    return 0 < len(leaves) <= MOST_LEAVES and all(map(fits, leaves))


def _alike(first: tuple[list[Any], Any], second: tuple[list[Any], Any]) -> bool:
    """Tell whether two samples fit into one block."""
    (a, form), (b, other) = first, second
    packable = _packable(a)
    if packable != _packable(b):
        return False
    return not packable or (form == other and all(map(_same_kind, a, b)))


def _same_kind(a: Any, b: Any) -> bool:
    if type(a) is not type(b):
        return False
    return not isinstance(a, Tensor) or (a.dtype == b.dtype and a.shape == b.shape)


def blocks(count: int) -> Iterator[slice]:
    """Yield the samples in blocks."""
    starts = range(0, count, BLOCK)
    yield from (slice(start, end) for start, end in zip(starts, [*starts[1:], count], strict=True))

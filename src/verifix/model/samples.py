"""The verified samples: read once, checked, split into folds, and handed out by index in a fixed order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Subset

from verifix.errors import DataError
from verifix.model.groups import Groups, as_groups, joined, merged
from verifix.model.identified import combined, identified
from verifix.model.rows import Packed, rows_of
from verifix.model.run import Forward, named_arguments
from verifix.model.sources import (
    DEFAULT_BATCH_SIZE,
    Batch,
    Items,
    Source,
    ask_dataset,
    collate,
    remark_of,
    source_of,
)
from verifix.options import MOST_SAMPLES
from verifix.progress import note, progress_bar

MEMORY_BYTES = 2**30
"""Samples are kept in memory after the first reading if they take no more than this."""


@dataclass(frozen=True)
class Samples:
    """Samples that can be read again by index, in any order, as often as needed.

    Attributes
    ----------
    source
        Where they are read from.
    batch_size
        The user's own, or None if it is free.
    labels
        int64 ``[n]``.
    digests
        One SHA-256 per sample, of its input as the model gets it in a batch of one, which has no padding.
    forward
        ``(model, inputs) → output``, where calling the model is not all; None for calling it.
    prints
        One SHA-256 per sample, of what it was before it was prepared (the pixels of an image, upright), where the
        data set knows; else empty.
    origin
        The data set that knows where its samples stand, for messages, and which sample of it each one is.
    columns
        What `digests` were made from, by name, where inputs are dictionaries; else empty.
    outputs
        What the model's outputs mean, once that is known: `forward` then returns logits. See `verifix.model.outputs`.
    declared
        The group of each sample, as it was given; empty if none was.
    """

    source: Source
    batch_size: int | None
    labels: Tensor
    digests: tuple[bytes, ...]
    forward: Forward | None = None
    prints: tuple[bytes, ...] = ()
    origin: tuple[Any, Sequence[int]] = (None, ())
    columns: tuple[Mapping[str, bytes], ...] = ()
    outputs: str | None = None
    declared: tuple[Hashable, ...] = ()

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.labels)

    @property
    def fingerprints(self) -> tuple[bytes, ...]:
        """What tells copies: `prints`, or where there are none `digests`."""
        return self.prints or self.digests

    @cached_property
    def groups(self) -> Groups:
        """int64 ``[n]``: which samples are not independent, because their inputs or their declared groups are equal."""
        return joined(self.prints, self.digests, self.declared)

    def where(self, index: int) -> str:
        """Return the file, row or line of a sample; empty if that is not known."""
        dataset, numbers = self.origin
        return (ask_dataset(dataset, numbers[index], "place") if dataset is not None else None) or ""

    def text(self, index: int) -> str | None:
        """Return the text that a sample was made from; None if it was none."""
        dataset, numbers = self.origin
        text: str | None = None if dataset is None else ask_dataset(dataset, numbers[index], "text")
        return text

    def place(self, index: int) -> str:
        """Return which sample it is, and where it stands if that is known."""
        where = self.where(index)
        return f"sample {index}" + (f" ({where})" if where else "")

    def subset(self, indices: Sequence[int]) -> Samples:
        """Return some of the samples, in the order of `indices`."""
        dataset, numbers = self.origin
        return replace(
            self,
            source=replace(self.source, dataset=Subset(self.source.dataset, list(indices))),
            labels=self.labels[list(indices)],
            digests=tuple(self.digests[i] for i in indices),
            prints=tuple(self.prints[i] for i in indices) if self.prints else (),
            origin=(dataset, [numbers[i] for i in indices] if dataset is not None else ()),
            columns=tuple(self.columns[i] for i in indices) if self.columns else (),
            declared=tuple(self.declared[i] for i in indices) if self.declared else (),
        )

    def reaching(self, model: nn.Module) -> Samples:
        """Return the samples with digests of what reaches a model alone: not of an index or a path beside it."""
        if not self.columns or self.forward is not None:  # which may use whatever it is given
            return self
        names = named_arguments(model, next(self.batches([0], 1)).inputs)
        if names is None:
            return self
        return replace(self, digests=tuple(combined({k: own[k] for k in names}) for own in self.columns))

    def batches(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        """Yield the samples at `indices`, in that order, `batch_size` at a time."""
        yield from self.source.read(indices, batch_size)

    def alone(self, index: int) -> Batch:
        """Return one sample as a batch of its own."""
        return next(self.batches([index], 1))

    def digest(self) -> str:
        """Return one SHA-256 (hexadecimal) of all inputs and labels, whatever their order."""
        rows = sorted(
            d + int(y).to_bytes(8, "little", signed=True) for d, y in zip(self.digests, self.labels, strict=True)
        )
        return hashlib.sha256(b"".join(rows)).hexdigest()


def together(first: Samples, second: Samples) -> Samples:
    """Return two sets of samples as one, of which `groups` are those of both; groups are declared if both have them."""
    both = first.declared and second.declared
    return replace(
        first,
        source=replace(first.source, dataset=ConcatDataset([first.source.dataset, second.source.dataset])),
        labels=torch.cat([first.labels, second.labels]),
        digests=first.digests + second.digests,
        prints=first.prints + second.prints if first.prints and second.prints else (),
        origin=(None, ()),
        columns=(),
        declared=first.declared + second.declared if both else (),
    )


def apart_from(samples: Samples, used: Sequence[Samples], digests: frozenset[bytes] = frozenset()) -> list[int]:
    """Return which samples are not among others, by pixels, input or group; `digests` are those of further others."""
    groups = merged([*_keys(samples), digests, *(own for others in used for own in _keys(others))])
    apart: list[int] = np.flatnonzero(~np.isin(groups[: len(samples)], groups[len(samples) :])).tolist()
    return apart


def _keys(samples: Samples) -> list[tuple[Hashable, ...]]:
    """Return what tells that a sample is another one, or of its group: pixels, input and group."""
    declared = [("group", value) for value in samples.declared]
    every = [part for part in (samples.prints, samples.digests, declared) if part]
    return list(zip(*every, strict=True))


def read_samples(
    verified: Any,
    batch_size: int | str = "auto",
    show: bool = False,
    forward: Forward | None = None,
    most: int = MOST_SAMPLES,
    groups: Any = None,
) -> Samples:
    """Read all samples once: check them, fingerprint them, and keep them in memory if they are small.

    Parameters
    ----------
    verified
        A DataLoader (its dataset is re-read by index in order, so its shuffling does not matter), a Dataset, or a
        pair of tensors ``inputs [n, ...]``, ``labels [n]``; inputs may be a dictionary or a tuple of tensors. Samples
        that have been read are taken as they are.
    batch_size
        A number, or "auto": the DataLoader's own if there is one.
    show
        Whether to show progress.
    forward
        As in `Samples`.
    most
        How many samples there may be.
    groups
        One value per sample; samples with equal ones are not independent. By default, what the data set knows.

    Returns
    -------
    Samples
        The samples.

    Raises
    ------
    DataError
        If an input or a label is not usable; the message names the first such sample.
    UsageError
        If `verified` is none of the accepted things.
    """
    if isinstance(verified, Samples):
        own_size = verified.batch_size if batch_size == "auto" else int(batch_size)
        declared = verified.declared if groups is None else as_groups(groups, len(verified))
        return replace(verified, batch_size=own_size, forward=forward or verified.forward, declared=declared)
    source, own_size = opened(verified, batch_size, most)
    dataset, count = source.dataset, len(source.dataset)  # type: ignore[arg-type]
    declared = _declared(dataset, count) if groups is None else as_groups(groups, count)
    memory = Packed(MEMORY_BYTES)
    with progress_bar("reading samples", count, show) as bar:
        found = identified(
            source, range(count), own_size or DEFAULT_BATCH_SIZE, lambda _, item: memory.add(item), bar.update
        )
    if count > 1 and (remark := remark_of(dataset)):  # one alone is looked at before the set is read
        note(remark)
    rows = rows_of(dataset) if source.collate is collate else None
    if rows is not None or memory.whole:
        kept = memory if rows is None else rows
        source = replace(source, dataset=Items(kept, found.prints, dataset), batch_size=None, options={})
    origin = dataset, range(count)
    parts = torch.tensor(found.labels), found.digests, forward, found.prints, origin, tuple(found.columns)
    return Samples(source, own_size, *parts, declared=declared)


def opened(verified: Any, batch_size: int | str, most: int) -> tuple[Source, int | None]:
    """Return how to read samples, of which there must be some but not too many, and the batch size wanted."""
    source = source_of(verified, most)
    count = len(source.dataset)  # type: ignore[arg-type]
    if count == 0:
        raise DataError("the verified set is empty; it must hold at least 2 samples")
    if count > most:
        raise DataError(
            f"there are {count:,} samples, more than max_samples {most:,}; give fewer (--limit draws some), or set "
            "max_samples= (--max-samples) to more"
        )
    return source, source.batch_size if batch_size == "auto" else int(batch_size)


def _declared(dataset: Any, count: int) -> tuple[Hashable, ...]:
    """Return the groups that a data set has been asked to read; none of any other."""
    found = [ask_dataset(dataset, i, "group") for i in range(count)]
    return () if None in found else as_groups(found, count)


def check_labels(labels: Tensor, outputs: int, where: Callable[[int], str] | None = None) -> None:
    """Check that labels name outputs of the model.

    Parameters
    ----------
    labels
        int64 ``[n]``.
    outputs
        Number of logits per sample; one means a binary classifier with labels 0 and 1.
    where
        Says where a sample stands, by its index, or nothing if that is not known.

    Raises
    ------
    DataError
        Naming the first label out of range.
    """
    classes = 2 if outputs == 1 else outputs
    wrong = ((labels < 0) | (labels >= classes)).nonzero().flatten()
    if len(wrong):
        i = int(wrong[0])
        place = f" ({where(i)})" if where is not None and where(i) else ""
        raise DataError(
            f"sample {i} has label {int(labels[i])}{place}, but the model has {outputs} "
            f"output{'s' * (outputs != 1)}, so labels go from 0 to {classes - 1}; {len(wrong)} of {len(labels)} labels "
            f"do not fit; {_remedy(labels, classes)}"
        )


def _remedy(labels: Tensor, classes: int) -> str:
    """Say what to do about labels out of range."""
    low, high = int(labels.min()), int(labels.max())
    if low == 1 and high == classes:
        return "they seem to count from 1, so subtract 1"
    ignored = [value for value in (-100, -1) if bool((labels == value).any())]
    if ignored and high < classes and bool(((labels >= 0) | (labels == ignored[0])).all()):
        return f"{ignored[0]} often marks samples without a label: leave them out"
    return "correct them, or leave the samples out"

"""Read many samples: each process its part, and none again that a killed run has read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from verifix.errors import UsageError
from verifix.model import ranks
from verifix.model.identified import alone, identified, input_digest
from verifix.model.rows import Packed, rows_of
from verifix.model.run import Forward
from verifix.model.samples import MEMORY_BYTES, Samples, opened, read_samples
from verifix.model.sources import DEFAULT_BATCH_SIZE, Items, Source, collate, remark_of
from verifix.options import MOST_SAMPLES
from verifix.progress import note, progress_bar
from verifix.storage.chunks import Arrays, Chunks

READ = "read"


def read_in_parts(
    data: Any,
    chunks: Chunks,
    batch_size: int | str = "auto",
    show: bool = False,
    forward: Forward | None = None,
    most: int = MOST_SAMPLES,
) -> Samples:
    """Read samples as `read_samples` does, each process its own part of them.

    Parameters
    ----------
    data, batch_size, show, forward, most
        As in `read_samples`.
    chunks
        Where what has been read is kept.

    Returns
    -------
    Samples
        All samples, in every process, without groups and columns. Those of the own part are kept in memory, if they are
        small.

    Raises
    ------
    UsageError
        If the samples are not those of which the chunks are.
    """
    if isinstance(data, Samples) or (ranks.size() == 1 and chunks.folder is None):
        return read_samples(data, batch_size, show, forward, most)
    source, own_size = opened(data, batch_size, most)
    count = len(source.dataset)  # type: ignore[arg-type]
    if ranks.size() > 1:  # that all see the same samples cannot be known, as each reads its own part alone
        ends = [input_digest(alone(source, source.dataset[i], i).inputs) for i in (0, count - 1)]
        ranks.check_alike({"samples": (count, own_size, ends)})
    parts = chunks.split(count, own_size or DEFAULT_BATCH_SIZE)
    memory = _Memory()
    with progress_bar("reading samples", sum(map(len, ranks.mine(parts))), show) as bar:

        def read(chunk: range) -> Arrays:
            there = chunks.kept(READ, chunk)
            found = once(chunk)
            if there:
                _check_first(source, chunk, found, chunks)
                bar.update(len(chunk))
            return found

        once = chunks.through(
            READ, lambda chunk: _read(source, chunk, own_size or DEFAULT_BATCH_SIZE, memory, bar.update)
        )
        everything = ranks.spread(read, parts, [len(part) for part in parts])
    for remark in dict.fromkeys(ranks.exchange(remark_of(source.dataset))):
        if remark:
            note(remark)
    labels, digests, prints = (np.concatenate([part[name] for part in everything]) for name in _COLUMNS)
    origin, rows = source.dataset, rows_of(source.dataset) if source.collate is collate else None
    known = tuple(map(bytes, prints)) if len(prints) == count else ()
    if rows is not None:
        source = replace(source, dataset=Items(rows, known, origin), batch_size=None, options={})
    elif memory.places:
        source = replace(source, dataset=_PartlyRead(origin, memory))
    return Samples(
        source,
        own_size,
        torch.from_numpy(labels),
        tuple(map(bytes, digests)),
        forward,
        known,
        (origin, range(count)),
    )


_COLUMNS = ("labels", "digests", "prints")


class _Memory:
    """Samples that are kept in memory, by their index, as long as they are small."""

    def __init__(self) -> None:
        self.items = Packed(MEMORY_BYTES)
        self.places: dict[int, int] = {}

    def add(self, index: int, item: Any) -> None:
        self.places[index] = len(self.items)
        self.items.add(item)
        if not self.items.whole:
            self.places.clear()


class _PartlyRead(Dataset[Any]):
    """A data set of which some samples are in memory."""

    def __init__(self, dataset: Any, memory: _Memory) -> None:
        self.dataset, self.memory = dataset, memory

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        place = self.memory.places.get(index)
        return self.dataset[index] if place is None else self.memory.items[place]


def _read(source: Source, chunk: range, batch_size: int, memory: _Memory, done: Callable[[int], object]) -> Arrays:
    """Read the samples of a chunk: labels ``[n]``, digests and prints ``[n, 32]``, or no prints."""
    found = identified(source, chunk, batch_size, memory.add, done)
    return {
        "labels": np.array(found.labels, np.int64),
        "digests": _rows(found.digests),
        "prints": _rows(found.prints),
    }


def _rows(digests: Sequence[bytes]) -> Any:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), 32)


def _check_first(source: Source, chunk: range, found: Arrays, chunks: Chunks) -> None:
    """Refuse chunks of other samples: the first one of each is read again."""
    (item,) = replace(source, dataset=Subset(source.dataset, [chunk.start])).items(1)
    batch = alone(source, item, chunk.start)
    if input_digest(batch.inputs) != bytes(found["digests"][0]) or int(batch.labels[0]) != found["labels"][0]:
        raise UsageError(
            f"{chunks.folder} holds scores of other samples (sample {chunk.start} has changed); name another folder, "
            "or remove this one"
        )

"""Samples that are far apart: those nearest to the centres of k-means, by numbers that wait on the disk."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from functools import reduce
from types import TracebackType
from typing import Any

import numpy as np

from verifix.model import ranks
from verifix.storage.chunks import Arrays

Array = np.ndarray[Any, Any]

LOOKED_AT = 2**16
"""Samples from which the centres are found, at least: at random, and at least `PER_CENTRE` per centre."""

PER_CENTRE = 64

MINI_BATCH = 4096
"""Samples that k-means looks at in each step, and that are read at once."""


class Spool:
    """Numbers of this process's samples in a temporary file, which goes with the context."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - the spool is the context
        self._start = 0
        self._width = 0

    def __enter__(self) -> Spool:
        """Return the spool."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the file."""
        self._file.close()

    def clear(self) -> None:
        """Forget everything."""
        self._file.seek(0)
        self._file.truncate()

    def take(self, part: range, found: Arrays) -> None:
        """Take the features of neighbouring samples out of what was computed of them; parts follow each other."""
        rows = np.ascontiguousarray(found.pop("features"), np.float32)
        if self._file.tell() == 0:
            self._start, self._width = part.start, rows.shape[1]
        self._file.write(rows.tobytes())

    def read(self) -> Iterator[tuple[int, Array]]:
        """Yield the index of a sample, and the features of it and those after it, ``[up to MINI_BATCH, width]``."""
        self._file.seek(0)
        start = self._start
        while content := self._file.read(4 * MINI_BATCH * self._width):
            rows = np.frombuffer(content, np.float32).reshape(-1, self._width)
            yield start, rows
            start += len(rows)


def spread(spool: Spool, order: Array, count: int, seed: int) -> list[int]:
    """Return samples that are far apart: those nearest to the centres of as many clusters.

    Parameters
    ----------
    spool
        The features of this process's samples; those of all processes together are those of all samples.
    order
        The samples to choose from, in random order.
    count
        How many.
    seed
        Of k-means.

    Returns
    -------
    list of int
        Those of the largest clusters first; the same in every process.
    """
    if count >= len(order):
        return [int(i) for i in order]
    turns = np.full(int(order.max()) + 1, -1)
    turns[order] = np.arange(len(order))
    looked_at = _first(spool, turns, max(LOOKED_AT, PER_CENTRE * count))
    centres: Any = ranks.from_first(_centres(looked_at, count, seed) if ranks.rank() == 0 else None)
    sizes, nearest = _nearest(spool, turns, centres)
    clusters = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)]
    chosen = order[nearest[clusters]].tolist()
    left = order[~np.isin(order, chosen)][: count - len(chosen)]  # empty clusters give way to random samples
    return [*chosen, *left.tolist()]


def _used(spool: Spool, turns: Array) -> Iterator[tuple[Array, Array]]:
    """Yield the turns of samples to choose from ``[n]`` with their features ``[n, width]``."""
    for start, rows in spool.read():
        own = turns[start : start + len(rows)]
        yield own[own >= 0], rows[: len(own)][own >= 0]


def _first(spool: Spool, turns: Array, count: int) -> Array:
    """Return the features of the first samples, in their random order, in every process."""
    own = [(mine[mine < count], rows[mine < count]) for mine, rows in _used(spool, turns)]
    parts = [part for parts in ranks.exchange(own) for part in parts]
    features: Array = np.concatenate([rows for _, rows in parts])
    return features[np.argsort(np.concatenate([mine for mine, _ in parts]))]


def _centres(features: Array, count: int, seed: int) -> Array:
    from sklearn.cluster import MiniBatchKMeans

    how = {"batch_size": MINI_BATCH, "n_init": 3, "reassignment_ratio": 0.0}  # which gives small clusters up
    centres: Array = MiniBatchKMeans(count, random_state=seed, **how).fit(features).cluster_centers_
    return centres


def _nearest(spool: Spool, turns: Array, centres: Array) -> tuple[Array, Array]:
    """Return the size of each cluster, and the turn of the sample that is nearest to its centre, of all processes."""
    from sklearn.metrics import pairwise_distances_argmin_min

    sizes, best, nearest = np.zeros(len(centres), np.int64), np.full(len(centres), np.inf), np.full(len(centres), -1)
    for mine, rows in _used(spool, turns):
        if not len(mine):
            continue
        clusters, distances = pairwise_distances_argmin_min(rows, centres)
        sizes += np.bincount(clusters, minlength=len(centres))
        found = np.lexsort((mine, distances, clusters))
        each, first = np.unique(clusters[found], return_index=True)
        own = found[first]
        closer = _closer(distances[own], mine[own], best[each], nearest[each])
        best[each[closer]], nearest[each[closer]] = distances[own][closer], mine[own][closer]
    own_found: tuple[Array, Array, Array] = sizes, best, nearest
    together = reduce(_joined, ranks.exchange(own_found))
    return together[0], together[2]


def _joined(one: tuple[Array, Array, Array], other: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
    closer = _closer(other[1], other[2], one[1], one[2])
    return one[0] + other[0], np.where(closer, other[1], one[1]), np.where(closer, other[2], one[2])


def _closer(distances: Array, turns: Array, others: Array, their_turns: Array) -> Array:
    """Tell which samples are nearer than others; of equal ones, the one that comes first in the random order."""
    closer: Array = (distances < others) | ((distances == others) & (turns < their_turns))
    return closer

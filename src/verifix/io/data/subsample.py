"""Fewer samples of a set, by class: files are often sorted by class, and the first ones are no sample of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch.utils.data import Subset

from verifix.errors import UsageError
from verifix.model.sources import Source


def limited(source: Source, count: int | None, seed: int) -> Source:
    """Return some of the samples, of each class as large a share as it has in the set.

    Parameters
    ----------
    source
        The samples of a set that knows its labels.
    count
        How many; None, or more than there are, for all.
    seed
        Seed of the choice.

    Returns
    -------
    Source
        The chosen samples, in the order of the set.

    Raises
    ------
    UsageError
        If the set does not know its labels before its samples are read.
    """
    labels = getattr(source.dataset, "labels", None)
    if count is None or (labels is not None and count >= len(labels)):
        return source
    if labels is None:
        raise UsageError(f"--limit needs data with known labels, not a {type(source.dataset).__name__}; omit it")
    chosen = by_class(np.asarray(labels), count, seed)
    return replace(source, dataset=Subset(source.dataset, chosen))


def by_class(labels: np.ndarray[Any, Any], count: int, seed: int) -> list[int]:
    """Choose samples at random, of each class its share, rounded by the largest remainder.

    Parameters
    ----------
    labels
        ``[n]``.
    count
        How many, at most n.
    seed
        Seed of the choice.

    Returns
    -------
    list of int
        Indices, ascending.
    """
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(labels))
    values, inverse, sizes = np.unique(labels[order], return_inverse=True, return_counts=True)
    exact = count * sizes / len(labels)
    quotas = np.floor(exact).astype(np.int64)
    more = np.lexsort((generator.random(len(values)), -(exact - quotas)))[: count - int(quotas.sum())]
    quotas[more] += 1
    chosen = [order[inverse == k][:quota] for k, quota in enumerate(quotas)]
    return sorted(map(int, np.concatenate(chosen)))

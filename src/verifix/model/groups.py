"""Which samples belong together: copies of one input, and samples of one patient, video or author."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence, Set
from typing import Any

import numpy as np

from verifix.errors import DataError, UsageError

Groups = np.ndarray[Any, Any]
"""int64 ``[n]``, counted from 0 in the order in which they first appear."""


def as_groups(values: Any, count: int) -> tuple[Hashable, ...]:
    """Take groups as they were given.

    Parameters
    ----------
    values
        One value per sample ``[n]``: an array, a tensor, a list or a Series, of texts or numbers.
    count
        Number of samples.

    Returns
    -------
    tuple
        The values, of which equal ones are one group.

    Raises
    ------
    UsageError
        If they are no such values.
    DataError
        If there are more or fewer than samples, or one is missing.
    """
    if isinstance(values, (str, bytes, Mapping, Set)) or not hasattr(values, "__len__"):
        raise UsageError(
            f"groups is a {type(values).__name__}; it must be an array or a list with one value for each of the "
            f"{count} samples, such as the patient that each is of"
        )
    found = values.tolist() if hasattr(values, "tolist") else list(values)
    if not isinstance(found, list) or len(found) != count:
        have = len(found) if isinstance(found, list) else "no"
        raise DataError(f"groups have {have} values for {count} samples; give one value per sample, in their order")
    for i, value in enumerate(found):
        if missing(value):
            raise DataError(
                f"the group of sample {i} is {value!r}; give every sample a group, and one that belongs to no other a "
                "group of its own"
            )
        if not isinstance(value, Hashable):
            raise UsageError(f"the group of sample {i} is a {type(value).__name__}; give one text or number per sample")
    return tuple(found)


def missing(value: Any) -> bool:
    """Tell None, NaN and what else pandas has for nothing: none of them equals itself."""
    try:
        return value is None or not bool(value == value)  # noqa: PLR0124
    except (TypeError, ValueError):
        return not isinstance(value, (list, np.ndarray))


def merged(keys: Iterable[Iterable[Hashable]]) -> Groups:
    """Put samples together that have a key in common, or are connected by others that do.

    Parameters
    ----------
    keys
        Of each sample.

    Returns
    -------
    ndarray
        The group of each: connected components of samples and keys (scipy).
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows: list[int] = []
    columns: list[int] = []
    known: dict[Hashable, int] = {}
    count = 0
    for own in keys:
        for key in own:
            rows.append(count)
            columns.append(known.setdefault(key, len(known)))
        count += 1
    size = count + len(known)
    graph = coo_array((np.ones(len(rows), np.int8), (rows, np.array(columns, np.int64) + count)), shape=(size, size))
    return in_order(connected_components(graph, directed=False)[1][:count])


def in_order(groups: Groups) -> Groups:
    """Count groups anew, in the order in which they first appear."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return first.argsort().argsort()[inverse].astype(np.int64)


def joined(*parts: Sequence[Hashable]) -> Groups:
    """Put samples together that are equal in one of several respects: sequences ``[n]``; empty ones say nothing."""
    there = [part for part in parts if len(part)]
    return merged([(kind, value) for kind, value in enumerate(own)] for own in zip(*there, strict=True))

"""Columns of labels: the one that is named, or the only one there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from verifix.errors import DataError, first_of
from verifix.model.class_names import as_written


def check_column(name: str, names: Sequence[str], source: object, remedy: str) -> str:
    """Refuse a column that is not there.

    Parameters
    ----------
    name
        The column.
    names
        Those that there are.
    source
        What they are columns of, for messages.
    remedy
        What to do about it, for messages.

    Returns
    -------
    str
        The column.

    Raises
    ------
    DataError
        Naming those that there are.
    """
    if name not in names:
        raise DataError(f"{source} has no column {name!r} (it has {first_of(names, 10) or 'none'}); {remedy}")
    return name


def only_column(columns: Mapping[str, Sequence[object]], source: str, remedy: str) -> str:
    """Choose among columns that may all be the labels.

    Parameters
    ----------
    columns
        Their values, by name.
    source
        What they are columns of, for messages.
    remedy
        What to do about it, for messages.

    Returns
    -------
    str
        The first, if all hold the same.

    Raises
    ------
    DataError
        Naming two that differ.
    """
    first, *others = columns
    for name in others:
        pairs = zip(columns[first], columns[name], strict=True)
        if any(as_written(a) != as_written(b) for a, b in pairs):
            raise DataError(f"{source} has the labels {first!r} and {name!r}, which differ; {remedy}")
    return first

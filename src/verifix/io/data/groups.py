"""The column that says which samples belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from verifix.errors import DataError, UsageError
from verifix.io.data.labels import check_column
from verifix.io.options import group_column
from verifix.model.class_names import as_written
from verifix.model.groups import missing
from verifix.model.sources import Source
from verifix.settings import Settings


class Grouped:
    """A set of data whose samples may be asked for their group."""

    groups: Sequence[str] = ()

    def group(self, index: int) -> str | None:
        """Return the group of a sample; None if no column was named."""
        return self.groups[index] if self.groups else None


def with_groups(
    source: Source, options: Settings, names: Sequence[str], column: Callable[[str], Sequence[Any]], path: object
) -> Source:
    """Let the samples of a set know their groups, if a column of them was named.

    Parameters
    ----------
    source
        The samples.
    options
        Whether there is such a column.
    names
        The columns that there are.
    column
        Returns a column, one value per sample.
    path
        What they are read from, for messages.

    Returns
    -------
    Source
        The same.

    Raises
    ------
    DataError
        If there is no such column, or it has no value for a sample.
    """
    name = group_column(options)
    if name is not None:
        dataset: Any = source.dataset
        dataset.groups = read_groups(name, names, column, path, dataset.place)
    return source


def read_groups(
    name: str,
    names: Sequence[str],
    column: Callable[[str], Sequence[Any]],
    path: object,
    place: Callable[[int], str],
) -> list[str]:
    """Read the groups, as text, so that 1, 1.0 and "1" are the same in every format; see `with_groups`."""
    check_column(name, names, path, "name the one of the groups with --groups")
    values = column(name)
    for i, value in enumerate(values):
        if missing(value) or isinstance(value, (list, dict)) or not as_written(value):
            raise DataError(
                f"{place(i)} has {value!r} in the column {name!r} of groups; give every sample a group, and one that "
                "belongs to no other a group of its own"
            )
    return [as_written(value) for value in values]


def check_grouped(source: Source, options: Settings, path: object) -> Source:
    """Refuse to take samples for independent because their format has no column that could say otherwise."""
    name = group_column(options)
    if name is not None and not getattr(source.dataset, "groups", ()):
        raise UsageError(
            f"{path} has no columns, so none named {name!r} for --groups; for a folder of images, list them in a "
            f"metadata.csv with the columns file_name, label and {name}"
        )
    return source

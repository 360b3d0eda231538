"""Tables in CSV, JSON lines and Parquet, read column by column."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from verifix.errors import DataError, one_line
from verifix.progress import note

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")
"""Suffixes of tables, in small letters or capitals."""

SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}
"""What may separate the columns of a table of text, and what that is called."""

LONGEST_HEAD = 10_000
"""Characters of the first line that are looked at for what separates columns."""

SMALL = 2**26
"""Bytes of a Parquet file's columns up to which all of them are read at once."""

MOST_MISSING, SPARSEST = 10**6, 20
"""Values of a table beyond which there must be one for every so many places: lines with names of their own are none."""


@dataclass(frozen=True)
class Table:
    """Rows of named columns.

    Attributes
    ----------
    path
        The file.
    names
        Of the columns.
    rows
        How many.
    column
        Returns the values of a column.
    place
        Says where a row stands, by its index, for messages.
    value_of
        Returns one value, of a column and row, without reading the whole column; None if the table is in memory.
    kinds
        The type of each column, where the format knows one.
    class_names
        The names of the classes of a column with class numbers, where the file has them.
    """

    path: Path
    names: tuple[str, ...]
    rows: int
    column: Callable[[str], Sequence[Any]]
    place: Callable[[int], str]
    value_of: Callable[[str, int], Any] | None = None
    kinds: Mapping[str, Any] = field(default_factory=dict)
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)


def read_table(path: Path) -> Table:
    """Read a table.

    Parameters
    ----------
    path
        A ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet`` file.

    Returns
    -------
    Table
        Its rows; what is embedded in Parquet is read when it is needed.

    Raises
    ------
    DataError
        If it is damaged; says in which line.
    """
    separated = {".csv": ",", ".tsv": "\t"}
    suffix = path.suffix.lower()
    if suffix in separated:
        return _from_csv(path, separated[suffix])
    return (_from_json_lines if suffix == ".jsonl" else _from_parquet)(path)


def text_of(path: Path) -> str:
    """Read a file of text.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    str
        Its text.

    Raises
    ------
    DataError
        If it is not UTF-8; says in which line.
    """
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DataError(f"line {line} of {path} is not UTF-8; save the file with the encoding UTF-8") from None


def _from_csv(path: Path, separator: str) -> Table:
    rows: list[list[str]] = []
    lines: list[int] = []
    text = text_of(path)
    separator = _separator(path, text, separator)
    with _long_fields():
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        try:
            for row in reader:
                if row:
                    rows.append(row)
                    lines.append(reader.line_num)
        except csv.Error as error:
            raise DataError(f"line {reader.line_num} of {path} is not CSV ({error}); correct it") from None
    if not rows:
        raise DataError(f"{path} is empty; its first line must name the columns")
    names, *rows = rows
    if len(set(names)) < len(names):
        raise DataError(f"{path} has the column {Counter(names).most_common(1)[0][0]!r} twice; name each column once")
    for row, line in zip(rows, lines[1:], strict=True):
        if len(row) != len(names):
            raise DataError(
                f"line {line} of {path} has {len(row)} values for {len(names)} columns; correct it, and put values "
                f"with {SEPARATORS[separator]} in quotation marks"
            )
    columns = {name: [row[i] for row in rows] for i, name in enumerate(names)}
    return _in_memory(path, columns, len(rows), lines[1:])


def _separator(path: Path, text: str, usual: str) -> str:
    """Return what separates the columns: another sign than the usual one if only that makes the first line several."""
    first = text.lstrip().partition("\n")[0][:LONGEST_HEAD]
    counts = {sign: len(next(csv.reader([first], delimiter=sign), [])) for sign in SEPARATORS}
    likely = max(counts, key=lambda sign: counts[sign])
    if counts[usual] > 1 or counts[likely] < 2:
        return usual
    note(f"{path}: columns are separated by {SEPARATORS[likely]}")
    return likely


@contextmanager
def _long_fields() -> Iterator[None]:
    """Allow texts of any length, for as long as this file is read."""
    limit = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


def _from_json_lines(path: Path) -> Table:
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    for number, line in enumerate(text_of(path).split("\n"), 1):
        if line.strip():
            rows.append(_json_object(line, f"line {number} of {path}"))
            lines.append(number)
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = len(names) * len(rows)
    if cells > max(MOST_MISSING, SPARSEST * sum(map(len, rows))):
        raise DataError(
            f"{path} has {len(names)} different names in {len(rows)} lines, so nearly all values are missing; use the "
            "same names in every line"
        )
    return _in_memory(path, {name: [row.get(name) for row in rows] for name in names}, len(rows), lines)


def _json_object(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not JSON ({error}); correct it, and write one object per line") from None
    if not isinstance(row, dict):
        raise DataError(f"{place} is a {type(row).__name__}; write one object with named values per line")
    return row


def _in_memory(path: Path, columns: Mapping[str, list[Any]], rows: int, lines: Sequence[int]) -> Table:
    return Table(path, tuple(columns), rows, columns.__getitem__, partial(_line_of, path, lines))


def _line_of(path: Path, lines: Sequence[int], row: int) -> str:
    return f"line {lines[row]} of {path}"


def _row_of(path: Path, row: int) -> str:
    return f"row {row} of {path}"


def _from_parquet(path: Path) -> Table:
    import pyarrow.parquet

    with _readable(path):
        file = pyarrow.parquet.ParquetFile(path)
        schema = file.schema_arrow
    times = Counter(schema.names)
    if file.metadata.num_rows > path.stat().st_size:
        raise DataError(
            f"{path} has {file.metadata.num_rows} rows in {path.stat().st_size} bytes, which is too few; write it again"
        )
    return Table(
        path,
        tuple(schema.names),
        file.metadata.num_rows,
        _ParquetColumns(path, sum(file.metadata.row_group(i).total_byte_size for i in range(file.num_row_groups))),
        partial(_row_of, path),
        ParquetValues(path),
        {field.name: field.type for field in schema if times[field.name] == 1},
        _class_names(schema.metadata or {}),
    )


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        line = one_line(error, 200)
        raise DataError(f"{path} is not a readable Parquet file ({line}); check that it is complete") from None


class _ParquetColumns:
    """The columns of a Parquet file: read one by one, or all at once where that takes little memory.

    Reading one takes time for each that there is, so that one by one, thousands of them would take minutes.
    """

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.small = size <= SMALL
        self._all: Any = None

    def __call__(self, name: str) -> list[Any]:
        values: list[Any] = (self._whole() if self.small else self._read([name]))[name].to_pylist()
        return values

    def _whole(self) -> Any:
        if self._all is None:
            self._all = self._read(None)
        return self._all

    def _read(self, names: list[str] | None) -> Any:
        import pyarrow.parquet

        with _readable(self.path):
            return pyarrow.parquet.read_table(self.path, columns=names, partitioning=None)


def _class_names(metadata: Mapping[bytes, bytes]) -> dict[str, Sequence[str]]:
    """Return the class names that the datasets library leaves in a Parquet file, by column."""
    try:
        features = json.loads(metadata[b"huggingface"])["info"]["features"]
        return {
            name: tuple(map(str, feature["names"]))
            for name, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError):  # it is a note, and not needed
        return {}


class ParquetValues:
    """Single values of a Parquet file, of which one group of rows is in memory at a time: for images.

    Parameters
    ----------
    path
        The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts: np.ndarray[Any, Any] | None = None
        self._group = lru_cache(maxsize=1)(self._read_group)

    def __call__(self, column: str, row: int) -> Any:
        """Return one value.

        Parameters
        ----------
        column
            Which column.
        row
            Which row.

        Returns
        -------
        Any
            The value, as plain data.
        """
        group = int(np.searchsorted(self._group_starts(), row, side="right")) - 1
        return self._group(column, group)[row - int(self._group_starts()[group])].as_py()

    def _group_starts(self) -> np.ndarray[Any, Any]:
        import pyarrow.parquet

        if self._starts is None:
            with _readable(self.path):
                file = pyarrow.parquet.ParquetFile(self.path)
            counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            self._starts = np.cumsum([0, *counts])[:-1]
        return self._starts

    def _read_group(self, column: str, group: int) -> Any:
        import pyarrow.parquet

        with _readable(self.path):
            return pyarrow.parquet.ParquetFile(self.path).read_row_group(group, columns=[column])[column]

"""Files of predictions, of labels alone, and of weights: arrays and tables of numbers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from verifix.errors import DataError, UsageError, one_line
from verifix.evaluation.predictions import Array
from verifix.io.data.groups import read_groups
from verifix.io.data.manifests import LABEL_COLUMNS, column_of, labelled
from verifix.io.data.npz import INPUT_NAMES, LABEL_NAMES
from verifix.io.data.open import open_data
from verifix.io.data.tables import TABLES, Table, read_table
from verifix.io.options import DataOptions, group_column
from verifix.model.class_names import NUMBER, class_numbers
from verifix.model.groups import Groups, as_groups, joined
from verifix.model.samples import read_samples
from verifix.model.sources import Source

PREDICTIONS = (".npy", ".npz", *TABLES)
"""Endings of files of predictions; anything else is a checkpoint."""

SAMPLE_COLUMNS = ("id", "file_name", "text")
"""Columns that name a sample, so that rows with equal ones are the same sample."""

PREDICTION_NAMES = ("logits", "probabilities", "predictions")
NO_CLASS = (*LABEL_COLUMNS, "verified_label", "given_label", "index", "id", "")
"""Columns that are no column of numbers of a class, whatever they hold."""


def is_predictions(path: str) -> bool:
    """Tell a file of predictions from a checkpoint, by its ending."""
    return Path(path).suffix.lower() in PREDICTIONS


def read_predictions(path: str, options: DataOptions) -> Array:
    """Read what a model answered.

    Parameters
    ----------
    path
        A ``.npy`` file; a ``.npz`` file with the array ``logits``, ``probabilities`` or ``predictions``, or with one
        array alone; or a table with a column of numbers per class, or one column of predicted classes.
    options
        Class names: columns with these names are put into their order.

    Returns
    -------
    ndarray
        ``[n, classes]`` of logits, probabilities or percent, or ``[n]`` of predicted classes.

    Raises
    ------
    DataError
        If it cannot be read, or holds something else.
    """
    file = _there(path)
    values = _from_table(read_table(file), options) if file.suffix.lower() in TABLES else _array(file, PREDICTION_NAMES)
    if values.dtype.kind == "U":
        return _named(values, options, path)
    return values


def read_labels(path: str, options: DataOptions) -> Array:
    """Read labels alone; see `read_labelled`."""
    return read_labelled(path, options)[0]


def read_labelled(path: str, options: DataOptions) -> tuple[Array, Groups | None]:
    """Read labels, what tells which samples belong together, and nothing else of a set if that can be helped.

    Parameters
    ----------
    path
        A ``.npy`` file; a ``.npz`` file with the array ``y`` or ``labels``; a table with a column of labels; or any
        other data that `open_data` knows.
    options
        Names of the column of labels and of classes.

    Returns
    -------
    labels : ndarray
        int64 ``[n]``.
    groups : ndarray or None
        int64 ``[n]``: equal for samples of one declared group, and for the same sample in several rows (by the columns
        `SAMPLE_COLUMNS` of a table, the text, or the inputs of an ``.npz``); None if nothing tells.

    Raises
    ------
    DataError
        If there are no labels, or they do not fit the class names; if there is no such column of groups.
    """
    suffix = Path(path).suffix.lower()
    if suffix in TABLES:
        table = read_table(_there(path))
        labels, rows = _table_labels(table, options)
        return labels, _groups_of_rows(table, rows, options)
    if suffix in (".npy", ".npz"):
        values = _array(_there(path), LABEL_NAMES)
        labels = _named(values, options, path) if values.dtype.kind == "U" else values
        return labels, _groups_in_arrays(path, len(labels) if labels.ndim else 0, options)
    source = open_data(path, options)
    dataset: Any = source.dataset
    texts, groups = getattr(dataset, "texts", ()), getattr(dataset, "groups", ())
    return _labels_of(source), joined(texts, groups) if len(texts) or len(groups) else None


def _groups_of_rows(table: Table, rows: Sequence[int], options: DataOptions) -> Groups | None:
    """Return which rows of a table are of one group, or the same sample."""
    column, place = partial(column_of, table, rows), partial(_place, table, rows)
    known = [[value or object() for value in column(name)] for name in SAMPLE_COLUMNS if name in table.names]
    known = [values for values in known if all(isinstance(value, Hashable) for value in values)]
    name = group_column(options)
    if name is not None:
        known.append(list(read_groups(name, table.names, column, table.path, place)))
    return joined(*known) if known else None


def _groups_in_arrays(path: str, count: int, options: DataOptions) -> Groups | None:
    """Return which samples of an ``.npz`` are of one group, or have the same input."""
    name, known = group_column(options), []
    if Path(path).suffix.lower() == ".npy":
        if name is not None:
            raise UsageError(f"{path} has no columns, so none named {name!r}; give --groups with a table or an .npz")
        return None
    with np.load(path, allow_pickle=False) as arrays:
        inputs = next((arrays[each] for each in INPUT_NAMES if each in arrays), np.zeros(0))
        if inputs.ndim and len(inputs) == count:
            known.append([row.tobytes() for row in inputs])
        if name is not None:
            values = read_groups(
                name, arrays.files, lambda each: arrays[each].tolist(), path, f"row {{}} of {path}".format
            )
            known.append(list(as_groups(values, count)))
    return joined(*known) if known else None


def read_numbers(path: str, column: str) -> Array:
    """Read one number per sample.

    Parameters
    ----------
    path
        A ``.npy`` file ``[n]``, or a table with the column named `column`, or with one column alone.
    column
        The column.

    Returns
    -------
    ndarray
        float64 ``[n]``.

    Raises
    ------
    DataError
        If it cannot be read, or holds something else.
    """
    file = _there(path)
    if file.suffix.lower() not in TABLES:
        numbers = _array(file, (column, f"{column}s"))
        if numbers.dtype.kind == "U":
            raise DataError(f"{path} holds text; it must hold one number per sample")
        return numbers
    table = read_table(file)
    _named_columns(table)
    name = column if column in table.names else table.names[0]
    if name != column and len(table.names) > 1:
        raise DataError(f"{path} has the columns {', '.join(table.names[:5])}; one must be named {column!r}")
    return np.array(_numbers(table, name))


def _there(path: str) -> Path:
    file = Path(path)
    if not file.is_file():
        raise UsageError(f"{path} does not exist; check the path")
    if file.suffix.lower() not in PREDICTIONS:
        raise UsageError(f"{path} has no known format of predictions; give a {', '.join(PREDICTIONS)} file")
    return file


def _array(path: Path, names: Sequence[str]) -> Array:
    """Read a file of numpy; of several arrays the one with a known name."""
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            return _checked(content, path)
        with content as arrays:
            found = [name for name in names if name in arrays] or (list(arrays) if len(arrays.files) == 1 else [])
            listed = ", ".join(arrays.files) or "none"
            values = _checked(arrays[found[0]], path) if found else None
    except DataError:
        raise
    except Exception as error:  # zipfile and zlib have errors of their own
        line = one_line(error)
        raise DataError(f"{path} is not a readable numpy file ({line}); write numbers with numpy.save") from None
    if values is None:
        raise DataError(f"{path} has the arrays {listed}; one must be named {' or '.join(names)}")
    return values


def _checked(values: Array, path: Path) -> Array:
    if values.dtype.kind not in "iufU":
        raise DataError(f"{path} holds {values.dtype}; it must hold numbers, or names of classes")
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _named(names: Array, options: DataOptions, path: str) -> Array:
    place = f"entry {{}} of {path}".format
    return np.array(class_numbers(names.reshape(-1).tolist(), options.class_names, path, place)).reshape(names.shape)


def _from_table(table: Table, options: DataOptions) -> Array:
    strange = [name for name in table.names if name.strip() in NO_CLASS]
    if len(table.names) > 1 and strange:
        raise DataError(
            f"{table.path} has the column {strange[0]!r}, which is no class; keep only one column of numbers per class"
        )
    if not table.rows:
        raise DataError(f"{table.path} has no row; it must hold one per sample")
    _named_columns(table)
    if len(table.names) > 1:
        return np.array([_numbers(table, name) for name in _in_order(table, options.class_names)]).T
    values = table.column(table.names[0])
    if any(isinstance(value, float) for value in values) or (
        not all(NUMBER.fullmatch(str(value).strip()) for value in values) and all(map(_is_number, values))
    ):
        return np.array(_numbers(table, table.names[0]))[:, None]
    return np.array(class_numbers(values, options.class_names, str(table.path), table.place))


def _in_order(table: Table, classes: Sequence[str] | None) -> Sequence[str]:
    """Put columns into the order of the classes: by name, else by number, else as they stand."""
    if classes is not None and set(classes) & set(table.names):
        if set(classes) != set(table.names):
            odd = next(iter(set(classes) ^ set(table.names)))
            raise DataError(f"{table.path} and --classes do not name the same classes ({odd!r}); correct one of them")
        return classes
    return sorted(table.names, key=int) if all(NUMBER.fullmatch(name) for name in table.names) else table.names


def _named_columns(table: Table) -> None:
    """Refuse a table without a line of names, whose first row would be lost without a word."""
    names = table.names
    numbers = {int(name) for name in names if NUMBER.fullmatch(name)}
    if all(map(_is_number, names)) and (len(names) == 1 or numbers != set(range(len(names)))):
        raise DataError(
            f"the first line of {table.path} is {', '.join(names[:5])}; it must name the columns, by classes or by "
            f"numbers from 0 to {len(names) - 1}"
        )


def _numbers(table: Table, name: str) -> list[float]:
    values = table.column(name)
    for i, value in enumerate(values):
        if not _is_number(value):
            raise DataError(f"{table.place(i)} has {value!r} in column {name!r}; it must be a number")
    return [float(value) for value in values]


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, bool)


def _table_labels(table: Table, options: DataOptions) -> tuple[Array, Sequence[int]]:
    """Read the labels of a table of samples, or of one that has nothing but labels."""
    known = {*LABEL_COLUMNS, "verified_label", options.label_column}
    rows: Sequence[int]
    if len(table.names) == 1 and not known & set(table.names):
        _named_columns(table)
        name, rows, labels = table.names[0], list(range(table.rows)), list(table.column(table.names[0]))
    else:
        name, rows, labels = labelled(table, options, "")
    own = [table.class_names[name]] if name in table.class_names else []
    place: Callable[[int], str] = partial(_place, table, rows)
    numbers = class_numbers(labels, options.class_names, f"column {name!r} of {table.path}", place, own)
    return np.array(numbers), rows


def _place(table: Table, rows: Sequence[int], index: int) -> str:
    return table.place(rows[index])


def _labels_of(source: Source) -> Array:
    """Return the labels of opened data; those that lie ready, without decoding a single image."""
    ready = getattr(source.dataset, "labels", None)
    if ready is not None:
        return torch.as_tensor(ready).numpy()
    return read_samples(source, most=len(source.dataset)).labels.numpy()  # type: ignore[arg-type]

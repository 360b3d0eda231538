"""Tables of samples: file names, embedded images or texts, with labels and, in a manifest, what a person decided."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from verifix.errors import DataError, UsageError, first_of
from verifix.io.data.groups import with_groups
from verifix.io.data.image_values import file_inside, image_bytes, path_in, root_of
from verifix.io.data.images import Images, from_files
from verifix.io.data.labels import check_column, only_column
from verifix.io.data.preparation import Preparation
from verifix.io.data.tables import Table
from verifix.io.data.text import as_texts, columns_named, pair_among, text_source
from verifix.io.options import DataOptions
from verifix.model.class_names import as_written, class_numbers
from verifix.model.labels import UNKNOWN
from verifix.model.sources import Source
from verifix.progress import note

STATUSES = ("ok", "relabel", "unsure", "skip")
"""What a person may have decided on a sample: its given label is right, it has another, or it is left out."""
IMAGE_COLUMNS = ("image", "file_name")
LABEL_COLUMNS = ("label", "labels")
BYTES = ("binary", "large_binary", "binary_view")


def read_samples_of(table: Table, options: DataOptions, preparation: Preparation) -> Source:
    """Read the labelled samples of a table.

    Parameters
    ----------
    table
        With a column of images, file names or texts, and a column of labels; or a manifest, which has the columns
        ``verified_label``, ``given_label`` and ``status`` instead.
    options
        Names of the columns, and the folder of the images.
    preparation
        How to turn samples into inputs, and the class names.

    Returns
    -------
    Source
        The samples that have a label.

    Raises
    ------
    DataError
        If columns are missing, or a row has no usable label or content.
    """
    columns, is_text = _content_columns(table, options, preparation)
    content = columns[0]
    _ = (preparation.for_texts if is_text else preparation.for_images)(str(table.path))  # before labels are looked at
    rows, numbers = (_numbered if preparation.labelled else _without_labels)(table, options, preparation, content)
    place = partial(_place_of, table, rows)
    if is_text:
        values = as_texts([table.column(each) for each in columns])
        source = text_source([values[i] for i in rows], numbers, place, preparation, str(table.path))
    else:
        source = Source(_images(table, options, preparation, content, rows, numbers))
    return with_groups(source, options, table.names, partial(column_of, table, rows), table.path)


def _numbered(
    table: Table, options: DataOptions, preparation: Preparation, content: str
) -> tuple[list[int], list[int]]:
    """Return the rows that have a label, and these labels as outputs of the model."""
    name, rows, labels = labelled(table, options, content)
    if not rows:
        raise DataError(f"{table.path} has no row with a verified label; verify some samples first")
    own, place = [table.class_names[name]] if name in table.class_names else [], partial(_place_of, table, rows)
    return rows, class_numbers(labels, preparation.class_names, f"column {name!r} of {table.path}", place, own)


def _without_labels(table: Table, *_: object) -> tuple[list[int], list[int]]:
    """Return the rows that may be used without a label: of a manifest, those that nobody has set aside."""
    manifest = "status" in table.names and "verified_label" in table.names
    statuses = table.column("status") if manifest else [""] * table.rows
    rows = [i for i, status in enumerate(statuses) if _empty(status) or str(status).strip() != "skip"]
    if not rows:
        raise DataError(f"{table.path} has no rows; give a table with samples")
    if len(rows) < table.rows:
        note(f"{table.rows - len(rows)} of {table.rows} rows of {table.path} are left out: skip")
    return rows, [UNKNOWN] * len(rows)


def column_of(table: Table, rows: Sequence[int], name: str) -> list[Any]:
    """Return the values of a column in some rows."""
    values = table.column(name)
    return [values[i] for i in rows]


def _place_of(table: Table, rows: Sequence[int], index: int) -> str:
    return table.place(rows[index])


def _content_columns(table: Table, options: DataOptions, preparation: Preparation) -> tuple[list[str], bool]:
    """Choose the columns that the model's inputs come from: one, or two of texts; and tell whether these are texts."""
    if options.text_column is not None:
        return columns_named(options.text_column, table.names, str(table.path)), True
    if options.image_column is not None:
        return [_there(table, options.image_column, "--image-column")], False
    pair = pair_among(table.names, str(table.path)) if preparation.tokenize is not None else []
    known = (*IMAGE_COLUMNS, "text") if preparation.tokenize is None else ("text", *IMAGE_COLUMNS)
    found = pair or [name for name in known if name in table.names][:1]
    if not found:
        raise DataError(
            f"{table.path} has no column 'image', 'file_name' or 'text' (it has {_listed(table.names)}); "
            "name the one with --image-column or --text-column, or two of texts with --text-column a,b"
        )
    return found, bool(pair) or found == ["text"]


def labelled(table: Table, options: DataOptions, content: str) -> tuple[str, list[int], list[Any]]:
    """Find the labels of a table.

    Parameters
    ----------
    table
        The table.
    options
        Name of the column of the labels.
    content
        The column of the samples, which is none of labels; empty if there is none.

    Returns
    -------
    tuple
        The column of the labels, the rows that have one, and the labels.

    Raises
    ------
    DataError
        If there is no such column, or a row of a manifest contradicts itself.
    """
    if options.label_column is None and "verified_label" in table.names:
        return "verified_label", *_verified(table)
    known = [name for name in LABEL_COLUMNS if name in table.names]
    name = options.label_column or (known[0] if known else "label")
    if options.label_column is None and len(known) > 1:
        columns = {each: table.column(each) for each in known}
        name = only_column(columns, str(table.path), "name the right column with --label-column")
    if name == content:
        raise UsageError(
            f"--label-column is {name!r}, which holds the samples of {table.path}; name the column of the labels"
        )
    _there(table, name, "--label-column")
    return name, list(range(table.rows)), list(table.column(name))


def _there(table: Table, name: str, flag: str) -> str:
    return check_column(name, table.names, table.path, f"name the right one with {flag}")


def _verified(table: Table) -> tuple[list[int], list[Any]]:
    """Return the rows of a manifest that have a verified label, and their labels."""
    rows: list[int] = []
    labels: list[Any] = []
    left_out: Counter[str] = Counter()
    empty = [None] * table.rows
    verified = table.column("verified_label")
    given, statuses = (table.column(name) if name in table.names else empty for name in ("given_label", "status"))
    for i, status in enumerate(statuses):
        label = _decided("" if _empty(status) else str(status).strip(), verified[i], given[i], partial(table.place, i))
        if isinstance(label, Left):
            left_out[label.why] += 1
        else:
            rows.append(i)
            labels.append(label)
    if left_out:
        what = ", ".join(f"{count} {why}" for why, count in left_out.items())
        note(f"{sum(left_out.values())} of {table.rows} rows of {table.path} are left out: {what}")
    return rows, labels


class Left:
    """A row that is left out, and why."""

    def __init__(self, why: str) -> None:
        self.why = why


def _decided(status: str, verified: Any, given: Any, place: Callable[[], str]) -> Any:
    if status not in ("", *STATUSES):
        raise DataError(f"{place()} has the status {status!r}; it must be one of {', '.join(STATUSES)}, or empty")
    if status in ("unsure", "skip"):
        return Left(status)
    both = not _empty(verified) and not _empty(given)
    if status == "ok" and both and as_written(verified) != as_written(given):
        raise DataError(
            f"{place()} has the status 'ok' (the given label is correct), but its given label {given!r} differs from "
            f"its verified label {verified!r}; correct one of them, or give the status 'relabel'"
        )
    if not _empty(verified):
        return verified
    if status == "relabel":
        raise DataError(f"{place()} has the status 'relabel' but no verified_label; give it one, or the status 'skip'")
    if status == "ok" and _empty(given):
        raise DataError(f"{place()} has the status 'ok' but no label; fill given_label or verified_label")
    return given if status == "ok" else Left("not verified yet")


def _empty(value: Any) -> bool:
    """Tell a value that is missing: NaN too, which stands for it where numbers are floats."""
    missing = isinstance(value, float) and math.isnan(value)
    return value is None or missing or (isinstance(value, str) and not value.strip())


def _images(
    table: Table, options: DataOptions, preparation: Preparation, name: str, rows: list[int], numbers: list[int]
) -> Images:
    kind, values = str(table.kinds.get(name, "string")), table.value_of
    root = root_of(options.image_root, table.path.parent)
    if values is not None and (kind in BYTES or ("struct" in kind and ("bytes" in kind or "path" in kind))):
        place = partial(_image_place, table, rows)
        return Images(partial(_stored, values, name, rows, root, place), place, numbers, preparation, str(table.path))
    if values is not None and "string" not in kind:
        raise DataError(
            f"the column {name!r} of {table.path} is {kind}; it must be a struct with the field 'bytes' or 'path', or "
            "file names (see --image-column)"
        )
    named = table.column(name)
    files = [file_inside(root, path_in(named[i]), table.place(i)) for i in rows]
    return from_files(files, numbers, preparation, str(table.path), partial(_file_place, table, rows, files))


def _file_place(table: Table, rows: Sequence[int], files: Sequence[str], index: int) -> str:
    return f"{files[index]} in {table.place(rows[index])}"


def _stored(
    values: Callable[[str, int], Any],
    name: str,
    rows: Sequence[int],
    root: Path,
    place: Callable[[int], str],
    index: int,
) -> bytes:
    return image_bytes(values(name, rows[index]), root, place(index))


def _image_place(table: Table, rows: Sequence[int], index: int) -> str:
    return f"the image in {table.place(rows[index])}"


def _listed(names: Sequence[str]) -> str:
    return first_of(names, 10) or "none"

"""Read what other tools found or decided: suspects become a queue, labels become records."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from verifix.errors import DataError, UsageError, one_line
from verifix.io.data.labels import check_column
from verifix.io.data.manifests import column_of, labelled
from verifix.io.data.records import Record
from verifix.io.data.tables import TABLES, Table, read_table, text_of
from verifix.io.optional_imports import library, reason
from verifix.io.options import DataOptions
from verifix.selection.exchange.pool import Pool

SCORES = ("label_quality", "label_score")
"""Columns of cleanlab's tables by which issues are ranked, lowest first."""

TRUE = (True, 1, "True", "true", "1")

Decided = tuple[int, str | None, str, str]
"""A sample, the name of its right class or None if it was skipped, who decided, and when."""


def suspects(path: Path, pool: Pool) -> list[int]:
    """Read label issues of cleanlab.

    Parameters
    ----------
    path
        A mask or ranked indices (``.npy``), a DataFrame of `CleanLearning.get_label_issues`, or the ``issues.csv`` of a
        Datalab, saved as ``.csv`` or ``.parquet``; rows are those of the data set, in its order.
    pool
        The data set.

    Returns
    -------
    list of int
        The samples with an issue, the worst first where that is known.

    Raises
    ------
    DataError
        If it is none of these, or has another length than the data set.
    """
    if path.suffix.lower() == ".npy":
        return _of_array(path, len(pool.files))
    table = read_table(_table_at(path))
    _same_length(table.rows, pool, path)
    check_column("is_label_issue", table.names, path, "save the table of cleanlab with all its columns")
    if "given_label" in table.names:
        _check_given(table, pool)
    issues = [i for i, value in enumerate(table.column("is_label_issue")) if value in TRUE]
    score = next((table.column(name) for name in SCORES if name in table.names), None)
    return issues if score is None else sorted(issues, key=lambda i: float(score[i]))


def _of_array(path: Path, count: int) -> list[int]:
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is not a readable .npy file ({one_line(error)}); save it with numpy.save") from None
    if array.ndim == 1 and array.dtype == bool and len(array) == count:
        mask: list[int] = np.flatnonzero(array).tolist()
        return mask
    whole = array.ndim == 1 and array.dtype.kind in "iu"
    if not whole or len(np.unique(array)) < len(array) or (len(array) and not 0 <= array.min() <= array.max() < count):
        raise DataError(
            f"{path} holds {array.dtype} of shape {list(array.shape)}; label issues of {count} samples are {count} "
            f"values True or False, or different indices from 0 to {count - 1}"
        )
    ranked: list[int] = array.tolist()
    return ranked


def _check_given(table: Table, pool: Pool) -> None:
    """Compare the given labels in a table of cleanlab with those of the data set: rows have no other name."""
    for i, label in enumerate(table.column("given_label")):
        place = table.place(i)
        if pool.class_named(label, place) != pool.given(i):
            raise DataError(
                f"{place} has the given label {label!r}, but sample {i} of {pool.header.data} has {pool.given(i)!r}; "
                "the table is of other data, or in another order"
            )


def manifest(path: Path, pool: Pool) -> Iterator[Decided]:
    """Read a table with a label for some samples: by ``id``, ``file_name`` or ``text``."""
    table = read_table(_table_at(path))
    names = [name for name in ("id", "file_name", "image", "text") if name in table.names]
    if not names:
        raise DataError(f"{path} has no column id, file_name or text to tell which samples are meant; add one")
    content = next((name for name in names if name != "id"), "")
    _, rows, labels = labelled(table, DataOptions(), content)
    columns = {name: column_of(table, rows, name) for name in (*names, "annotator", "time") if name in table.names}
    find = _finder(pool)
    for k, (row, label) in enumerate(zip(rows, labels, strict=True)):
        own = {name: values[k] for name, values in columns.items()}
        place = table.place(row)
        who, when = (str(own.get(name) or "") for name in ("annotator", "time"))
        yield find(own, place), pool.class_named(label, place), who, when


def _finder(pool: Pool) -> Callable[[Mapping[str, Any], str], int]:
    """Return a function that finds the sample of a row; all that the row says of it must agree."""
    texts: dict[str, list[int]] = {}
    if pool.header.options.get("texts"):
        for i in range(len(pool.files)):
            texts.setdefault(str(pool.text(i)), []).append(i)

    def find(row: Mapping[str, Any], place: str) -> int:
        found = [] if row.get("id") in (None, "") else [_index(row["id"], pool, place)]
        file = row.get("file_name") or row.get("image")
        if file is not None and pool.files[0] is not None:
            found.append(pool.index_of(str(file), place))
        text = row.get("text")
        if text is not None and texts:
            same = texts.get(str(text), [])
            if found and found[0] not in same:
                raise DataError(f"{place} has the id {found[0]} but another text than that sample; correct one of them")
            if not found and len(same) != 1:
                raise DataError(f"{place} has a text that {len(same)} samples have; name the sample by its id")
            found = found or same
        if not found or len(set(found)) > 1:
            raise DataError(f"{place} names {len(set(found))} samples ({found}); name one by its id, file or text")
        return found[0]

    return find


def _index(value: Any, pool: Pool, place: str) -> int:
    text = str(value).removesuffix(".0")
    if not text.isdecimal() or int(text) >= len(pool.files):
        raise DataError(f"{place} has the id {value!r}; ids of {pool.header.data} go from 0 to {len(pool.files) - 1}")
    return int(text)


def datasets(path: Path, pool: Pool) -> Iterator[Decided]:
    """Read the labels of a folder of ``datasets.save_to_disk`` with the same samples in the same order."""
    hf: Any = library("datasets", "datasets", "text")
    try:
        data = hf.load_from_disk(str(path))
    except Exception as error:  # arrow, json and the library each have errors of their own
        raise DataError(f"{path} is not a readable folder of datasets.save_to_disk ({reason(error)})") from None
    if isinstance(data, dict) or "label" not in data.features:
        raise DataError(f"{path} is not one split with a column label; save that split alone")
    _same_length(len(data), pool, path)
    names = getattr(data.features["label"], "names", None)
    for i, label in enumerate(data["label"]):
        own = names[label] if names is not None and label is not None and label >= 0 else label
        if own is not None:
            yield i, pool.class_named(own, f"row {i} of {path}"), "", ""


def fiftyone(path: Path, pool: Pool) -> Iterator[Decided]:
    """Read ``labels.json`` of a FiftyOneImageClassificationDataset."""
    content = _json(path)
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict):
        raise DataError(f'{path} is not a labels.json of FiftyOne, which is {{"classes": […], "labels": {{…}}}}')
    classes = content.get("classes")
    for name, target in labels.items():
        place = f"{name!r} in {path}"
        label = target.get("label") if isinstance(target, dict) else target
        if isinstance(label, list):
            raise DataError(f"{place} has several labels; a sample has one class, so export one label per image")
        if label is None:
            continue
        if classes is not None:
            if type(label) is not int or not 0 <= label < len(classes):
                raise DataError(f"{place} has the target {label!r}, which is no index of the {len(classes)} classes")
            label = classes[label]
        yield pool.index_of(name, place), pool.class_named(label, place), "", ""


def label_studio(path: Path, pool: Pool) -> Iterator[Decided]:
    """Read tasks of Label Studio with annotations: one choice per annotation; cancelled and empty ones are skipped."""
    tasks = _json(path)
    if not isinstance(tasks, list) or not all(isinstance(task, dict) and "data" in task for task in tasks):
        raise DataError(f"{path} is not a list of tasks of Label Studio; export the project in the format JSON")
    for number, task in enumerate(tasks):
        place = f"task {task.get('id', number)} of {path}"
        annotations = task.get("annotations") or []
        index = _of_task(task["data"], pool, place) if annotations else 0
        for annotation in annotations:
            who = annotation.get("completed_by", "")
            who = who.get("email", who.get("id", "")) if isinstance(who, dict) else who
            when = str(annotation.get("updated_at") or annotation.get("created_at") or "")
            empty = annotation.get("was_cancelled") or not annotation.get("result")
            chosen = None if empty else _chosen(annotation, pool, place)
            yield index, chosen, "" if who is None else str(who), when


def _of_task(data: Mapping[str, Any], pool: Pool, place: str) -> int:
    own = data.get("verifix_fingerprint")
    if own is not None and own != pool.header.fingerprint:
        raise DataError(f"{place} is of a data set with other names or labels than {pool.header.data}; export it again")
    if own is not None and "verifix_id" in data:
        return _index(data["verifix_id"], pool, place)
    row = {"file_name": data.get("image"), "text": data.get("text")}
    return _finder(pool)(row, place)


def _chosen(annotation: Mapping[str, Any], pool: Pool, place: str) -> str:
    chosen = [
        choice
        for result in annotation["result"]
        if result.get("type") == "choices"
        for choice in result.get("value", {}).get("choices", [])
    ]
    if len(chosen) != 1:
        raise DataError(f"{place} has {len(chosen)} choices in an annotation; a sample has one class")
    return pool.class_named(chosen[0], place)


def _json(path: Path) -> Any:
    try:
        return json.loads(text_of(path))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({one_line(error, 200)}); export it again") from None


def _table_at(path: Path) -> Path:
    if path.suffix.lower() not in TABLES:
        raise UsageError(f"{path} is no table; give a {', '.join(TABLES)} file")
    return path


def _same_length(count: int, pool: Pool, path: Path) -> None:
    if count != len(pool.files):
        raise DataError(
            f"{path} has {count} rows and {pool.header.data} {len(pool.files)} samples; rows have no names but their "
            "order, so give one for every sample"
        )


READERS: Mapping[str, Callable[[Path, Pool], Iterator[Decided]]] = {
    "manifest": manifest,
    "huggingface": manifest,
    "datasets": datasets,
    "fiftyone": fiftyone,
    "label-studio": label_studio,
}
"""What reads labels, by format; "cleanlab" has none, but suspects."""


def records(decided: Sequence[Decided], pool: Pool, annotator: str, now: str) -> list[Record]:
    """Return decisions as records.

    Parameters
    ----------
    decided
        What was decided.
    pool
        The data set.
    annotator, now
        What stands for a person and a time that are not known.

    Returns
    -------
    list of Record
        One per decision, in their order.
    """
    status = partial(_status, pool)
    return [
        Record(
            id=i,
            file=pool.files[i],
            label=pool.given(i),
            verified=label,
            status=status(i, label),
            annotator=who or annotator,
            time=when or now,
        )
        for i, label, who, when in decided
    ]


def _status(pool: Pool, index: int, label: str | None) -> Any:
    return "skip" if label is None else "ok" if label == pool.given(index) else "relabel"

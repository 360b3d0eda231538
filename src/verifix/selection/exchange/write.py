"""Write what was verified in the formats of other tools, for the whole data set or for the samples looked at."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from verifix.errors import DataError, UsageError
from verifix.io.data.verified import Decisions
from verifix.io.optional_imports import library
from verifix.selection.exchange.pool import Pool
from verifix.selection.queue import Entry

Row = dict[str, Any]


def manifest(pool: Pool, decisions: Decisions, path: Path) -> None:
    """Write one row per sample that was looked at, as `verifix correct` reads manifests."""
    ids = sorted({*decisions.labels, *decisions.left_out})
    _table(path, [_manifest_row(pool, decisions, i) for i in ids])


def _manifest_row(pool: Pool, decisions: Decisions, index: int) -> Row:
    given, verified = pool.given(index), decisions.labels.get(index)
    status = "ok" if given == verified else "relabel"
    if verified is None:
        status = "skip" if decisions.left_out[index] == "skip" else "unsure"
    return {"id": index, **_content(pool, index), "given_label": given, "verified_label": verified, "status": status}


def cleaned(pool: Pool, decisions: Decisions, path: Path) -> None:
    """Write one row per sample of the data set, with the verified label where there is one and else the given one."""
    _table(path, [{"id": i, **_content(pool, i), "label": label, "given_label": pool.given(i),
                   "verified": i in decisions.labels} for i, label in _labels(pool, decisions)])  # fmt: skip


def huggingface(pool: Pool, decisions: Decisions, path: Path) -> None:
    """Write ``metadata.jsonl`` or ``metadata.csv`` for an image folder: name and label of every image."""
    _need_files(pool, "metadata of an image folder")
    _table(path, [{"file_name": pool.files[i], "label": label} for i, label in _labels(pool, decisions)])


def datasets(pool: Pool, decisions: Decisions, path: Path) -> None:
    """Write a folder of ``datasets.save_to_disk`` with the cleaned labels as a `ClassLabel`."""
    hf: Any = library("datasets", "datasets", "text")
    labels = dict(_labels(pool, decisions))
    classes = pool.header.classes
    feature = hf.ClassLabel(names=list(classes))
    numbers = [classes.index(label) for label in labels.values()]
    if pool.header.options.get("texts"):
        content, kind = {"text": [pool.text(i) for i in labels]}, {"text": hf.Value("string")}
    else:
        _need_files(pool, "a folder of the datasets library")
        content, kind = {"image": [pool.path(i) for i in labels]}, {"image": hf.Image()}
    features = hf.Features(kind | {"label": feature})
    hf.disable_progress_bars()
    hf.Dataset.from_dict(content | {"label": numbers}, features=features).save_to_disk(str(path))


def cleanlab(pool: Pool, decisions: Decisions, path: Path) -> None:
    """Write what `CleanLearning` takes as ``label_issues``: a mask ``.npy``, or a table with one row per sample.

    Label quality is 1 for a label that was verified, 0 for one that was found wrong, and 0.5 for all others.
    """
    given = [pool.given(i) for i in range(len(pool.files))]
    wrong = np.array([decisions.labels.get(i, label) != label for i, label in enumerate(given)])
    if path.suffix.lower() == ".npy":
        np.save(path, wrong)
        return
    classes = pool.header.classes

    def number(name: str | None) -> int | None:
        return None if name is None else classes.index(name)

    _table(path, [
        {"is_label_issue": bool(wrong[i]), "label_quality": 0.5 if i not in decisions.labels else float(not wrong[i]),
         "given_label": number(label), "predicted_label": number(decisions.labels.get(i, label))}
        for i, label in enumerate(given)
    ])  # fmt: skip


def fiftyone(pool: Pool, decisions: Decisions, path: Path) -> None:
    """Write ``labels.json`` of a FiftyOneImageClassificationDataset: the class number of every image."""
    _need_files(pool, "labels of FiftyOne")
    classes = list(pool.header.classes)
    labels: dict[str, int | None] = {}
    for i, label in _labels(pool, decisions):
        name = str(PurePosixPath(str(pool.files[i])).with_suffix(""))
        if name in labels:
            raise DataError(
                f"two files are called {name} but for their suffix, and FiftyOne tells files apart without it; rename "
                "one of them"
            )
        labels[name] = None if label is None else classes.index(label)
    _json(path, {"classes": classes, "labels": labels})


def label_studio(pool: Pool, decisions: Decisions, path: Path) -> None:
    """Write tasks of Label Studio with one annotation for each sample on which something was decided."""
    _json(path, [_task(pool, i, {"annotations": [{"result": _choice(pool, label), "was_cancelled": False}]})
                 for i, label in sorted(decisions.labels.items())])  # fmt: skip


def label_studio_queue(pool: Pool, entries: Sequence[Entry], path: Path) -> None:
    """Write tasks of Label Studio for the samples of a queue, with the model's best answer as the prediction."""
    tasks = []
    for entry in entries:
        best = [{"model_version": "verifix", "score": score, "result": _choice(pool, pool.header.classes[label])}
                for label, score in entry.guesses[:1]]  # fmt: skip
        tasks.append(_task(pool, entry.id, {"predictions": best}))
    _json(path, tasks)


def _task(pool: Pool, index: int, beside: Row) -> Row:
    kind = "text" if pool.text(index) is not None else "image"
    content = pool.text(index) if kind == "text" else pool.files[index]
    if content is None:
        raise DataError(
            f"sample {index} of {pool.header.data} has neither a text nor a file of its own, which Label Studio could "
            "show; export a manifest, or save the images as files"
        )
    identity = {"verifix_id": index, "verifix_fingerprint": pool.header.fingerprint}
    return {"data": {kind: content, "given_label": pool.given(index), **identity}, **beside}


def _choice(pool: Pool, label: str) -> list[Row]:
    to = "text" if pool.header.options.get("texts") else "image"
    return [{"from_name": "label", "to_name": to, "type": "choices", "value": {"choices": [label]}}]


def _labels(pool: Pool, decisions: Decisions) -> Iterator[tuple[int, str | None]]:
    """Yield each sample with its verified label, or else its given one."""
    for i in range(len(pool.files)):
        yield i, decisions.labels.get(i, pool.given(i))


def _content(pool: Pool, index: int) -> Row:
    text = pool.text(index)
    if text is not None:
        return {"text": text}
    return {} if pool.files[index] is None else {"file_name": pool.files[index]}


def _need_files(pool: Pool, what: str) -> None:
    if None in pool.files:
        raise DataError(
            f"the samples of {pool.header.data} have no files of their own, and {what} name files; export a manifest"
        )


def _table(path: Path, rows: Sequence[Row]) -> None:
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    elif suffix == ".parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


def _json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=1), "utf-8")


Writer = Callable[[Pool, Decisions, Path], None]

TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")

FORMATS: Mapping[str, tuple[Writer, tuple[str, ...]]] = {
    "manifest": (manifest, TABLE_SUFFIXES),
    "cleaned": (cleaned, TABLE_SUFFIXES),
    "cleanlab": (cleanlab, (".npy", ".csv", ".parquet")),
    "label-studio": (label_studio, (".json",)),
    "fiftyone": (fiftyone, (".json",)),
    "huggingface": (huggingface, (".jsonl", ".csv")),
    "datasets": (datasets, ("",)),
}
"""Each format: what writes it, and the suffixes that its file may have; a folder has none."""


def check_suffix(form: str, out: str) -> None:
    """Refuse a name whose suffix is none of a format.

    Parameters
    ----------
    form
        One of `FORMATS`.
    out
        The name.

    Raises
    ------
    UsageError
        Naming those that there are.
    """
    allowed = FORMATS[form][1]
    if Path(out).suffix.lower() not in allowed:
        names = "a folder, without a suffix" if allowed == ("",) else f"a {', '.join(allowed)} file"
        raise UsageError(f"--out is {out}; --format {form} writes {names}")

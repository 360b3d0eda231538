"""`verifix import` and `verifix export`: labels from and for other tools."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from verifix.cli.commands.places import check_lines, read_by, written_by
from verifix.cli.verifying_options import ExportCommand, ImportCommand
from verifix.errors import DataError, UsageError
from verifix.io.data.identity import absolute, files_of, fingerprint_of, folder_of, opening_of
from verifix.io.data.open import SETS, open_data
from verifix.io.data.preprocessing import prepare
from verifix.io.data.records import QUEUE, VERIFIED, Header, header_of, spelled
from verifix.io.data.verified import read_decisions
from verifix.model.sources import Source
from verifix.selection.exchange.pool import Pool, pool_of
from verifix.selection.exchange.read import READERS, records, suspects
from verifix.selection.exchange.write import FORMATS, check_suffix, label_studio_queue
from verifix.selection.queue import Entry, read_queue
from verifix.storage.atomic import Output, check_apart, check_output, write_together

MARKS = ("dataset_info.json",)
"""Files of which a folder that is replaced must hold one."""


@dataclass(frozen=True)
class Exchanged:
    """What was read or written.

    Attributes
    ----------
    out
        The file or folder that was written.
    samples
        Of the data set.
    counts
        How many samples are in it, by what was decided: "verified", "unsure", "skip", "disagreement"; or "suspect".
    """

    out: str
    samples: int
    counts: dict[str, int]


def run_import(command: ImportCommand) -> tuple[int, Exchanged, str]:
    """Read what another tool found or decided; see `ImportCommand`."""
    check_apart(written_by(command), read_by(command))
    check_lines(command.out)
    check_output(command.out, force=command.force)
    source = Path(command.source)
    if not source.exists():
        raise UsageError(f"{source} does not exist; check the path of what is to be imported")
    pool = _pool(command)
    if command.format == "cleanlab":
        entries = [_entry(pool, i) for i in suspects(source, pool)]
        if not entries:
            raise DataError(f"{source} marks no sample as a label issue; there is nothing to verify")
        header: Header = replace(pool.header, format=QUEUE, strategy="cleanlab", random=(), probability=None)
        lines: list[object] = [header, *entries]
        counts = {"suspect": len(entries)}
    else:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        found = records(list(READERS[command.format](source, pool)), pool, command.annotator or command.format, now)
        if not found:
            raise DataError(f"{source} has no labels; there is nothing to import")
        lines = [replace(pool.header, format=VERIFIED), *found]
        counts = dict(Counter(record.status for record in found))
    _write(command.out, lambda place: place.write_bytes(spelled(lines)), force=command.force)
    result = Exchanged(command.out, len(pool.files), counts)
    return 0, result, f"{_told(result)}\nWrote {command.out}."


def run_export(command: ExportCommand) -> tuple[int, Exchanged, str]:
    """Write what was verified for another tool; see `ExportCommand`."""
    check_apart(written_by(command), read_by(command))
    check_suffix(command.format, command.out)
    folder = Path(command.out).suffix == ""
    check_output(command.out, force=command.force, folder=folder, marks=MARKS)
    header = header_of(command.records)
    if header is not None and header.format == QUEUE:
        if command.format != "label-studio":
            raise UsageError(
                f"{command.records} is a queue, on which nothing was decided; only --format label-studio takes one"
            )
        queue = read_queue(command.records)
        pool = pool_of(queue.header, command.records, command.pool)
        _write(command.out, lambda place: label_studio_queue(pool, queue.entries, place), force=command.force)
        result = Exchanged(command.out, queue.header.length, {"to verify": len(queue.entries)})
        return 0, result, f"{_told(result)}\nWrote {command.out}."
    decisions = read_decisions(command.records)
    pool = pool_of(decisions.header, command.records, command.pool)
    if not decisions.labels:
        raise DataError(f"{command.records} has no sample with a verified label; verify some samples first")
    write = FORMATS[command.format][0]
    _write(command.out, lambda place: write(pool, decisions, place), folder=folder, force=command.force)
    changed = sum(label != pool.given(i) for i, label in decisions.labels.items())
    counts = {"verified": len(decisions.labels), "changed": changed, **Counter(decisions.left_out.values())}
    result = Exchanged(command.out, decisions.header.length, counts)
    return 0, result, f"{_told(result)}\nWrote {command.out}."


def _told(result: Exchanged) -> str:
    return f"{result.samples:,} samples: {', '.join(f'{count} {what}' for what, count in result.counts.items())}."


def _write(out: str, fill: Any, *, folder: bool = False, force: bool = False) -> None:
    write_together([Output(Path(out), fill, folder=folder, marks=MARKS)], force=force)


def _entry(pool: Pool, index: int) -> Entry:
    label = int(pool.dataset.labels[index])
    return Entry(
        id=index,
        file=pool.files[index],
        label=label if label >= 0 else None,
        guesses=(),
        probability=None,
        part="cleanlab",
    )


def _pool(command: ImportCommand) -> Pool:
    """Open the data set that labels are imported for: that of a queue, or one that is named."""
    if command.queue is not None:
        header = header_of(command.queue)
        if header is None:
            raise UsageError(f"{command.queue} is no queue and no file of records; give the data set with --data")
        return pool_of(header, command.queue, command.pool)
    source, texts = _opened(command)
    dataset: Any = source.dataset
    labels = [int(label) for label in dataset.labels]
    names = command.class_names
    folder = folder_of(command.data, command.image_root)
    files = files_of(dataset, len(labels), folder)
    header = Header(
        data=absolute(command.data, SETS),
        classes=tuple(names if names is not None else map(str, range(max(labels, default=0) + 1))),
        length=len(labels),
        fingerprint=fingerprint_of(files, labels),
        strategy="import",
        seed=0,
        options=opening_of(command, labels=True, texts=texts, classes=names),
    )
    return Pool(header, dataset, folder, files)


def _opened(command: ImportCommand) -> tuple[Source, bool]:
    """Open the data set without a model, as images or numbers if it can be read so, and else as texts."""
    plain = prepare(None, "", command)
    try:
        return open_data(command.data, command, plain), False
    except DataError as error:
        if "holds texts" not in str(error):
            raise
    return open_data(command.data, command, replace(plain, tokenize=lambda _: {}, pad=lambda _: {})), True

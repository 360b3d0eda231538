"""Files about samples of a data set, one JSON object per line: queues of samples to verify, and records of decisions.

The first line is a header that says which data set is meant, and how to recognise it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import msgspec

from verifix.errors import DataError, UsageError, one_line
from verifix.progress import note

QUEUE: Final = "verifix-queue-1"
"""What the first line says if the file holds samples to verify."""

VERIFIED: Final = "verifix-verified-1"
"""What the first line says if the file holds what was decided on samples."""

Kind = TypeVar("Kind")


@dataclass(frozen=True, kw_only=True)
class Header:
    """The first line: the data set, and which of its samples were drawn at random.

    Attributes
    ----------
    format
        `QUEUE` or `VERIFIED`.
    data
        The data set, as ``--data`` names it; a path is absolute.
    classes
        Names of the classes, in the order of the model's outputs.
    length, fingerprint
        Number of its samples, and `fingerprint_of` their names and labels.
    strategy, seed
        How samples were selected.
    options
        Settings that it takes to open the data set again, by name.
    random
        Ids of all samples of the random part, in the order in which they were drawn: those of earlier rounds first.
    probability
        The probability with which each sample of the data set came into the random part; None if there is none.
    earlier
        Files of what was decided in earlier rounds.
    """

    format: Literal["verifix-queue-1", "verifix-verified-1"] = QUEUE
    data: str
    classes: tuple[str, ...]
    length: int
    fingerprint: str
    strategy: str
    seed: int
    options: dict[str, Any] = field(default_factory=dict)
    random: tuple[int, ...] = ()
    probability: float | None = None
    earlier: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Record:
    """One decision of one person on one sample.

    Attributes
    ----------
    id, file
        Index in the data set, and name of the file; None if it is not in a file of its own.
    label, verified
        Names of the given class and of the right one; None if there is none.
    status
        "ok" (the given label is right), "relabel", "unsure", "skip"; "undo" takes the person's last record back.
    annotator, time
        Who, and when: ISO 8601 in UTC.
    resolves
        Whether it ends a disagreement: then it counts, whatever others have decided.
    """

    id: int
    file: str | None = None
    label: str | None = None
    verified: str | None = None
    status: Literal["ok", "relabel", "unsure", "skip", "undo"]
    annotator: str
    time: str = ""
    resolves: bool = False


def header_of(path: str | Path) -> Header | None:
    """Return the header of a file of this kind.

    Parameters
    ----------
    path
        Any path.

    Returns
    -------
    Header or None
        None if there is no file, or its first line is not such a header.

    Raises
    ------
    DataError
        If it is a header with wrong values.
    """
    file = Path(path)
    if file.suffix.lower() != ".jsonl" or not file.is_file():
        return None
    with file.open("rb") as lines:
        first = lines.readline(1 << 26)
    try:
        content = json.loads(first)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict) or not str(content.get("format", "")).startswith("verifix-"):
        return None
    return _checked(_decoded(first, Header, file, 1), file)


def read_lines(path: str | Path, format: str, kind: type[Kind]) -> tuple[Header, list[Kind]]:  # noqa: A002
    """Read a file of this kind.

    Parameters
    ----------
    path
        The file.
    format
        What its first line must say that it is.
    kind
        The class of all other lines, which has an ``id``.

    Returns
    -------
    header : Header
        The first line.
    entries : list
        The others.

    Raises
    ------
    UsageError
        If there is no such file.
    DataError
        If a line is not what it must be; says which one.
    """
    file, what = Path(path), {QUEUE: "queue of verifix select", VERIFIED: "file of verified records"}[format]
    if not file.is_file():
        raise UsageError(f"{file} does not exist or is not a file; name a {what}")
    header = header_of(file)
    if header is None or header.format != format:
        told = "has no such header" if header is None else f"is a {header.format}"
        raise DataError(f"{file} {told}, but a {what} (.jsonl, first line with the format {format!r}) is needed")
    lines = file.read_bytes().split(b"\n")
    unfinished = lines.pop()  # every line that was written to its end has a line break
    if unfinished:
        note(f"{file}: its last line is not finished, as after a crash, and is left out")
    entries = [
        _decoded(line, kind, file, number) for number, line in enumerate(lines[1:], 2) if line and not line.isspace()
    ]
    for entry in entries:
        if not 0 <= (number := getattr(entry, "id")) < header.length:  # noqa: B009 - the class has it, but not its type
            raise DataError(
                f"{file} has the id {number}, but its data set has {header.length} samples, so ids go from 0 to "
                f"{header.length - 1}; write the file again"
            )
    return header, entries


def spelled(lines: Iterable[object]) -> bytes:
    """Return a header and entries as the content of a file."""
    return b"".join(msgspec.json.encode(line) + b"\n" for line in lines)


def _decoded(line: bytes, kind: type[Kind], path: Path, number: int) -> Kind:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(
            f"line {number} of {path} is not a valid {kind.__name__.lower()} ({one_line(error, 200)}); correct the "
            "line, or write the file again"
        ) from None


def _checked(header: Header, path: Path) -> Header:
    """Refuse a header whose values cannot be."""
    wrong = partial(_wrong_header, path)
    if header.length < 1:
        raise wrong(f"length {header.length}", "1 or more")
    if len(set(header.classes)) < max(len(header.classes), 1):
        raise wrong(f"{len(header.classes)} classes", "one name or more, each once")
    if len(set(header.random)) < len(header.random) or not _inside(header.random, header.length):
        raise wrong("ids in random that are there twice or out of range", "indices of samples, each once")
    if (header.probability is None) != (not header.random) or not 0 < (header.probability or 1) <= 1:
        raise wrong(f"probability {header.probability}", "above 0 and up to 1 where random has ids, and else null")
    return header


def _inside(ids: Sequence[int], length: int) -> bool:
    return not ids or (min(ids) >= 0 and max(ids) < length)


def _wrong_header(path: Path, found: str, allowed: str) -> DataError:
    return DataError(f"line 1 of {path} has {found}; it must be {allowed}, so write the file again")

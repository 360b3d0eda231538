"""The queue: which samples to verify, in which order, with what the model makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verifix.errors import DataError
from verifix.io.data.records import QUEUE, Header, read_lines, spelled
from verifix.storage.atomic import write_atomically

RANDOM = "random"
"""The part of a queue whose samples were drawn at random: the only ones with a probability, and that prove a gain."""

GUESSES = 3
"""How many of the model's best answers stand in a queue."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One sample to verify.

    Attributes
    ----------
    id, file
        Index in the data set, and name of the file; None if it is not in a file of its own.
    label
        The given class; None if there is none.
    guesses
        The model's best classes with their probabilities, the best one first.
    probability
        That with which it came into the random part; None if it is not of that part.
    part
        ``"random"``, or the strategy that selected it.
    """

    id: int
    file: str | None
    label: int | None
    guesses: tuple[tuple[int, float], ...]
    probability: float | None
    part: str


@dataclass(frozen=True)
class Queue:
    """Samples to verify, and the data set that they are of."""

    header: Header
    entries: tuple[Entry, ...]


def write_queue(queue: Queue, path: str | Path, *, force: bool = False) -> Path:
    """Write a queue.

    Parameters
    ----------
    queue
        The queue.
    path
        Where to: a ``.jsonl`` file.
    force
        Replace a file that exists.

    Returns
    -------
    Path
        The path.

    Raises
    ------
    OutputError
        If it cannot be written; what was there before is untouched.
    """
    content = spelled([queue.header, *queue.entries])
    return write_atomically(path, lambda place: place.write_bytes(content), force=force)


def read_queue(path: str | Path) -> Queue:
    """Read a queue.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Queue
        The queue.

    Raises
    ------
    UsageError
        If there is no such file.
    DataError
        If something in it cannot be; says in which line.
    """
    header, entries = read_lines(path, QUEUE, Entry)
    if not entries:
        raise DataError(f"{path} has no samples to verify; write it again with verifix select")
    drawn, seen = set(header.random), set[int]()
    for number, entry in enumerate(entries, 2):
        fault = _fault(entry, header, drawn) or (f"the id {entry.id} a second time" if entry.id in seen else "")
        if fault:
            raise DataError(f"line {number} of {path} has {fault}; write the queue again with verifix select")
        seen.add(entry.id)
    return Queue(header, tuple(entries))


def _fault(entry: Entry, header: Header, drawn: set[int]) -> str:
    """Say what is wrong with an entry; nothing if all is well."""
    classes = len(header.classes)
    named = [label for label in (entry.label, *(label for label, _ in entry.guesses)) if label is not None]
    if any(not 0 <= label < classes for label in named):
        wrong = next(label for label in named if not 0 <= label < classes)
        return f"the class {wrong}, but there are {classes}, numbered from 0"
    if any(not 0 <= share <= 1 for _, share in entry.guesses):
        return "a guess whose probability is not between 0 and 1"
    if (entry.part == RANDOM) != (entry.id in drawn):
        return f"the part {entry.part!r}, which contradicts the random ids of line 1"
    if entry.probability != (header.probability if entry.part == RANDOM else None):
        return f"the probability {entry.probability}, which contradicts line 1"
    return ""


def order_of(random: Sequence[int], selected: Sequence[int]) -> list[int]:
    """Mix the two parts of a queue evenly, each in its own order.

    Whoever stops half way has then verified half of each part. What is done of the random part is a random sample as
    well, because its own order is random.

    Parameters
    ----------
    random, selected
        Ids of both parts.

    Returns
    -------
    list of int
        All ids.
    """
    places = [((i + 0.5) / len(part), which, each) for which, part in enumerate((random, selected)) for i, each in
              enumerate(part)]  # fmt: skip
    return [each for _, _, each in sorted(places)]

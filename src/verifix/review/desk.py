"""What the page asks for and tells, without HTTP: the queue, decisions on it, and how far it is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any, Literal

import msgspec

from verifix.errors import UsageError
from verifix.io.data.records import Record
from verifix.io.data.tally import Tally
from verifix.review.agreement import agreement
from verifix.review.ledger import Ledger, earlier_records
from verifix.review.looks import Looks
from verifix.review.pictures import Pictures
from verifix.review.standing import ever_in_turn, in_turn, standing
from verifix.selection.queue import RANDOM, Queue

NAME = re.compile(r"[^\W_](?:[\w .,'@+-]{0,38}[\w.])?")
"""Names of people: letters and digits of any script, and little between them."""


UNDONE = 200
"""Requests of a person that can be taken back after the page was loaded again."""

TOGETHER = 60
"""Samples of a page of the grid, whose decisions are taken back together. More at once were imported."""


class Decision(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A decision on one sample: its place in the queue, and the number of its class if there is one."""

    place: int
    status: Literal["ok", "relabel", "unsure", "skip", "undo"]
    verified: int | None = None


class Sent(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a browser sends: who decides, what, and whether that ends disagreements."""

    name: str
    decisions: list[Decision]
    resolves: bool = False


class Asked(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """What a browser sends to hear what a person has decided so far."""

    name: str


class Desk:
    """A queue with what people decide on it.

    Parameters
    ----------
    queue
        The queue.
    pictures
        Its samples.
    ledger
        Where decisions are written; open.
    looks
        The corrections that were made in the background.
    """

    def __init__(self, queue: Queue, pictures: Pictures, ledger: Ledger, looks: Looks) -> None:
        self.queue = queue
        self.pictures = pictures
        self.ledger = ledger
        self.looks = looks
        self.earlier = Tally(earlier_records(queue.header))
        self._known: tuple[object, dict[str, Any]] | None = None
        self._place_of = {entry.id: place for place, entry in enumerate(queue.entries)}

    def described(self) -> dict[str, Any]:
        """Return what does not change: classes, and of every sample its given label and the model's guesses."""
        names = self.queue.header.classes
        entries = [
            {"id": each.id, "file": each.file, "label": each.label, "guesses": each.guesses}
            for each in self.queue.entries
        ]
        random = sum(each.part == RANDOM for each in self.queue.entries)
        return {"classes": names, "texts": self.pictures.texts, "random": random, "entries": entries}

    def decided(self, asked: Asked) -> dict[str, Any]:
        """Return what a person has decided, by place; what undo takes back, in order; and places of others alone."""
        name, tally = _checked_name(asked.name), self.ledger.tally()
        votes = {place: tally.by_person(entry.id) for place, entry in enumerate(self.queue.entries)}
        own = {place: records[name] for place, records in votes.items() if name in records}
        return {
            "decisions": {place: [record.status, self._number(record)] for place, record in own.items()},
            "steps": list(self._steps(tally, name))[-UNDONE:],
            "others": [place for place, records in votes.items() if records and place not in own],
        }

    def _steps(self, tally: Tally, name: str) -> Iterator[dict[str, Any]]:
        for records in tally.steps(name):
            places = [self._place_of[record.id] for record in records if record.id in self._place_of]
            together = [places] if len(places) <= TOGETHER else [[place] for place in places]
            yield from ({"places": each, "resolves": records[0].resolves} for each in together if each)

    def decide(self, sent: Sent) -> dict[str, Any]:
        """Write decisions down; when this returns, they are on the disk.

        Parameters
        ----------
        sent
            One or more decisions of a person.

        Returns
        -------
        dict
            How many were saved.

        Raises
        ------
        UsageError
            If one of them cannot be; then none is written.
        """
        name = _checked_name(sent.name)
        if not sent.decisions:
            raise UsageError("there is no decision in the request")
        records = [self._record(each, name, resolves=sent.resolves) for each in sent.decisions]
        if len({record.id for record in records}) < len(records):
            raise UsageError("a sample is in the request twice; send one decision per sample")
        self.ledger.append(records)
        return {"saved": len(records)}

    def standing(self) -> dict[str, Any]:
        """Return how far the verification is, and what it shows so far."""
        tally = self.ledger.tally()
        state = tally.records, self.looks.state
        if self._known is None or self._known[0] != state:
            found = asdict(standing(self.queue, self.earlier, tally, self.looks))
            found |= {"agreement": asdict(agreement(tally)), "disputed": self._disputes(tally)}
            self._known = state, found
        return self._known[1]

    def tick(self) -> None:
        """Let the corrections in the background go on; see `Looks.tick`."""
        tally, drawn = self.ledger.tally(), set(self.queue.header.random)
        ids = dict.fromkeys([*(entry.id for entry in self.queue.entries), *self.earlier.voted()])
        found = [(tally if tally.touched(i) else self.earlier).outcome(i) for i in ids if i not in drawn]
        rounds = self.queue, self.earlier, tally
        self.looks.tick(in_turn(*rounds), [record for record in found if record is not None], ever_in_turn(*rounds))

    def _disputes(self, tally: Tally) -> list[dict[str, Any]]:
        """Return the disagreements: the place of each sample, and the class that each person gave it."""
        return [
            {"place": self._place_of[sample], "votes": {
                name: self._number(record) for name, record in tally.by_person(sample).items()
                if record.verified is not None}}
            for sample in tally.disputed() if sample in self._place_of
        ]  # fmt: skip

    def _number(self, record: Record) -> int | None:
        return None if record.verified is None else self.queue.header.classes.index(record.verified)

    def _record(self, decision: Decision, name: str, *, resolves: bool) -> Record:
        """Return a decision as it is written, or refuse it."""
        entries, classes = self.queue.entries, self.queue.header.classes
        if not 0 <= decision.place < len(entries):
            raise UsageError(f"there is no sample {decision.place}; the queue has {len(entries)}, counted from 0")
        entry, number = entries[decision.place], decision.verified
        labels = decision.status in ("ok", "relabel")
        if labels != (number is not None) or (number is not None and not 0 <= number < len(classes)):
            raise UsageError(f"the class {number} is wrong for the status {decision.status}; there are {len(classes)}")
        if labels and (decision.status == "ok") != (number == entry.label):
            raise UsageError(f"the status {decision.status} contradicts the class {number} and the given {entry.label}")
        if resolves and decision.status not in ("ok", "relabel", "undo"):
            raise UsageError("a disagreement ends with a label; send ok or relabel")
        given = None if entry.label is None else classes[entry.label]
        verified = None if number is None else classes[number]
        return Record(id=entry.id, file=entry.file, label=given, verified=verified, status=decision.status,
                      annotator=name, resolves=resolves)  # fmt: skip


def _checked_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise UsageError("a name has 1 to 40 letters, digits, spaces or .,'@+- and begins with a letter or digit")
    return name


def place_in(queue: Queue, text: str) -> int:
    """Return the place of a sample in the queue from an address.

    Parameters
    ----------
    queue
        The queue.
    text
        What stands in the address.

    Returns
    -------
    int
        The place.

    Raises
    ------
    UsageError
        If it is none.
    """
    if re.fullmatch(r"0|[1-9][0-9]{0,8}", text, re.ASCII) is None or int(text) >= len(queue.entries):
        raise UsageError(f"there is no such sample; places go from 0 to {len(queue.entries) - 1}")
    return int(text)


def files_of_page() -> Sequence[str]:
    """Return the names of the files that a browser loads with the page."""
    return ("page.css", "icon.svg", "main.js", "state.js", "samples.js", "single.js", "grid.js", "figures.js")

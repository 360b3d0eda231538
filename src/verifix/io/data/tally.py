"""What counts of the records on samples: the last one of each person, and a label only if nobody contradicts it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

from verifix.io.data.records import Record

LABELS = ("ok", "relabel")
"""Statuses that give a sample a label. Whoever is unsure, or skips a sample, contradicts nobody."""


def decided_label(record: Record) -> str | None:
    """Return the name of the right class as a record says it; None for "unsure" and "skip"."""
    if record.status not in LABELS:
        return None
    return record.label if record.verified is None else record.verified


class Tally:
    """Records by sample and person.

    Parameters
    ----------
    records
        In the order in which they were written.

    Attributes
    ----------
    records
        How many there are.
    """

    def __init__(self, records: Iterable[Record] = ()) -> None:
        self.records = 0
        self._steps: dict[str, list[Record]] = {}
        self._of: dict[int, dict[str, list[Record]]] = {}
        self._resolved: dict[int, list[Record]] = {}
        self.add(records)

    def add(self, records: Iterable[Record]) -> None:
        """Take further records into account; one with the status "undo" takes the person's last one back."""
        for record in records:
            self.records += 1
            if record.resolves:
                kept = self._resolved.setdefault(record.id, [])
            else:
                kept = self._of.setdefault(record.id, {}).setdefault(record.annotator, [])
            steps = self._steps.setdefault(record.annotator, [])
            if record.status != "undo":
                kept.append(record)
                steps.append(record)
            elif (last := _last_of(record.annotator, kept)) is not None:
                del kept[last]
                del steps[_last_step(steps, record)]

    def copy(self) -> Tally:
        """Return the same, which later records leave as it is."""
        made = Tally()
        made.records = self.records
        made._steps = {name: [*steps] for name, steps in self._steps.items()}
        made._of = {sample: {name: [*kept] for name, kept in of.items()} for sample, of in self._of.items()}
        made._resolved = {sample: [*kept] for sample, kept in self._resolved.items()}
        return made

    def by_person(self, sample: int) -> dict[str, Record]:
        """Return what everybody has decided on a sample."""
        return {name: kept[-1] for name, kept in self._of.get(sample, {}).items() if kept}

    def steps(self, name: str) -> list[list[Record]]:
        """Return what a person has decided and not taken back, request by request, the last one at the end."""
        # The records of one request have one time, which no other request has.
        grouped = itertools.groupby(self._steps.get(name, ()), key=lambda record: (record.time, record.resolves))
        return [list(records) for _, records in grouped]

    def resolution(self, sample: int) -> Record | None:
        """Return the record that ended a disagreement on a sample."""
        kept = self._resolved.get(sample)
        return kept[-1] if kept else None

    def voted(self) -> list[int]:
        """Return the samples on which anybody has decided, in the order of their first record."""
        return [sample for sample in {**self._of, **self._resolved} if self.touched(sample)]

    def people(self) -> list[str]:
        """Return who has decided on any sample, in alphabetical order."""
        return sorted({name for kept in self._of.values() for name, records in kept.items() if records})

    def disputed(self) -> list[int]:
        """Return the samples on whose label people disagree, and nobody has decided who is right."""
        return [sample for sample in self._of if self._is_disputed(sample)]

    def touched(self, sample: int) -> bool:
        """Tell whether anybody has decided on a sample, whatever counts of it."""
        return bool(self.by_person(sample)) or self.resolution(sample) is not None

    def known(self, sample: int) -> bool:
        """Tell whether there is any record on a sample, even if all were taken back."""
        return sample in self._of or sample in self._resolved

    def outcome(self, sample: int) -> Record | None:
        """Return the record that counts.

        Parameters
        ----------
        sample
            Its index in the data set.

        Returns
        -------
        Record or None
            The resolution of a disagreement; or the last record that gives a label, if all such records give the same
            one; or the last of the others. None if nothing is decided, or people disagree.
        """
        resolution = self.resolution(sample)
        if resolution is not None:
            return resolution
        if self._is_disputed(sample):
            return None
        votes = list(self.by_person(sample).values())
        return next(iter(_labels(votes)[-1:] or votes[-1:]), None)

    def _is_disputed(self, sample: int) -> bool:
        votes = _labels(list(self.by_person(sample).values()))
        return len(set(map(decided_label, votes))) > 1 and self.resolution(sample) is None


def _labels(votes: Sequence[Record]) -> list[Record]:
    return [vote for vote in votes if vote.status in LABELS]


def _last_of(name: str, kept: Sequence[Record]) -> int | None:
    """Return the place of a person's last record; None if there is none."""
    return next((i for i in reversed(range(len(kept))) if kept[i].annotator == name), None)


def _last_step(steps: Sequence[Record], undone: Record) -> int:
    """Return the place of the record that another one takes back."""
    wanted = undone.id, undone.resolves
    return next(i for i in reversed(range(len(steps))) if (steps[i].id, steps[i].resolves) == wanted)

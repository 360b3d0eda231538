"""Corrections from the labels so far, made in the background, and what they gain on labels that they have not seen.

Every `EVERY` labels, a correction is made from the random samples in turn and from all others that are labelled. The
next random samples judge it: each is scored by the latest correction that was there at its turn. Whatever has been seen
until then, the next one is a fresh random sample for this correction, so that the outcomes are what `betting` asks for.
An outcome that was shown is never replaced by that of a later correction: what is shown would then follow the better
one of several sequences, and the bounds hold for one.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from verifix.io.data.records import VERIFIED, Header, Record, spelled
from verifix.io.data.tally import LABELS, decided_label
from verifix.progress import note
from verifix.review.betting import LEVEL, Bounds, bounds, needed
from verifix.storage.transaction import flush

EVERY = 50
"""Labels between two corrections, and before the first: with fewer, no strength is chosen."""

JOB, TRAIN, FOUND, LOG = "job.json", "verified.jsonl", "look.json", "log.txt"
"""Files in the folder of a correction that is made in the background."""

Turns = Sequence[tuple[int, Record | None]]
"""Samples of the random part in their turn, with the records that count; see `verifix.review.standing.in_turn`."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """One correction that was made in the background.

    Attributes
    ----------
    about
        What it was made with: a digest of data, model and settings. Those of others do not count.
    turns
        How many random samples were in turn before it was made.
    since
        The first turn that it judges: later ones were shown as judged by the one before, while it was being made.
    labels
        How many labels it was made from.
    before, after
        By random sample whose turn came later: the class that the model predicts without and with the correction.
    changed
        Whether the correction changes the model.
    seconds
        What it took.
    """

    about: str
    turns: int
    since: int
    labels: int
    before: dict[int, int]
    after: dict[int, int]
    changed: bool
    seconds: float


@dataclass(frozen=True)
class Gain:
    """What corrections from the labels so far gain on the random samples that came after them.

    Attributes
    ----------
    bounds
        Of the mean gain in the share of right answers, from −1 to 1.
    verdict
        "improved" or "harmful" once the bounds exclude 0, else "undecided".
    fixed, broken
        How many of these samples the correction sets right, and how many it breaks.
    more
        About how many more random samples would decide; None if those so far do not tell.
    looks, labels
        How many corrections were made, and from how many labels the last one.
    running
        Whether another one is being made.
    failed
        Why the last one failed; empty if it did not.
    """

    bounds: Bounds
    verdict: str
    fixed: int
    broken: int
    more: int | None
    looks: int
    labels: int
    running: bool
    failed: str


class Looks:
    """The corrections of one review.

    Parameters
    ----------
    path
        The file that keeps them.
    header
        That of the queue.
    about
        See `Look`.
    start
        Starts a process that makes a correction in a folder; None if there is no model.
    """

    def __init__(
        self, path: Path, header: Header, about: str, start: Callable[[Path], subprocess.Popen[bytes]] | None
    ) -> None:
        self.path = path
        self.header = header
        self.about = about
        self.start = start
        self.looks = [look for look in _read(path) if look.about == about] if start is not None else []
        self._running: tuple[subprocess.Popen[bytes], tempfile.TemporaryDirectory[str]] | None = None
        self._failed = ""
        self._last = max((look.labels for look in self.looks), default=0)

    @property
    def state(self) -> tuple[int, bool, str]:
        """What `gain` depends on beside the labels: corrections, whether one is being made, and what failed."""
        return len(self.looks), self._running is not None, self._failed

    def gain(self, turns: Turns) -> Gain | None:
        """Return what the corrections gain so far.

        Parameters
        ----------
        turns
            The random samples in turn.

        Returns
        -------
        Gain or None
            None if no correction was made or is being made.
        """
        if self.start is None:
            return None
        known, least, most = self._outcomes(turns)
        found = replace(bounds(known, -1.0, 1.0), low=bounds(least, -1.0, 1.0).low, high=bounds(most, -1.0, 1.0).high)
        verdict = "improved" if found.low > 0 else "harmful" if found.high < 0 else "undecided"
        y = (least + 1) / 2 if found.estimate is not None and found.estimate >= 0 else (1 - most) / 2
        return Gain(
            bounds=found,
            verdict=verdict,
            fixed=int((known > 0).sum()),
            broken=int((known < 0).sum()),
            more=needed(y, 0.5, (1 - LEVEL) / 2),
            looks=len(self.looks),
            labels=self._last,
            running=self._running is not None,
            failed=self._failed,
        )

    def _outcomes(self, turns: Turns) -> tuple[Any, Any, Any]:
        """Return whether judged random samples were set right (1), broken (−1), or neither (0): known, least, most."""
        # Where the label is not known (unsure, skipped, disputed), it is neither if both answers are equal, and else
        # anything. What becomes known later lies between, so that bounds from least and most hold at all times.
        known, least, most = [], [], []
        for turn, (sample, record) in enumerate(turns):
            made = [look for look in self.looks if look.since <= turn and sample in look.after]
            if not made:
                continue
            before, after = made[-1].before[sample], made[-1].after[sample]
            name = None if record is None else decided_label(record)
            if name is None:
                change = int(before != after)
                low, high = -change, change
            else:
                label = self.header.classes.index(name)
                low = high = (after == label) - (before == label)
                known.append(low)
            least.append(low)
            most.append(high)
        return np.array(known, float), np.array(least, float), np.array(most, float)

    def tick(self, turns: Turns, others: Sequence[Record], seen: int) -> None:
        """Take in a correction that is finished, and begin the next one if it is due.

        Parameters
        ----------
        turns
            The random samples in turn.
        others
            The records that count on samples that are not of the random part.
        seen
            How many random samples were ever in turn, with those that were taken back.
        """
        if self.start is None:
            return
        if self._running is not None:
            if self._running[0].poll() is None:
                return
            self._take(seen)
        known = [r for r in (*(record for _, record in turns), *others) if r is not None and r.status in LABELS]
        later = self.header.random[len(turns) :]
        if len(known) < self._last + EVERY or not later:
            return
        self._last = len(known) // EVERY * EVERY
        self._begin(known, turns, later)

    def close(self) -> None:
        """End a correction that is being made."""
        if self._running is not None:
            process, folder = self._running
            process.kill()
            _ended(process)
            folder.cleanup()
            self._running = None

    def _begin(self, known: Sequence[Record], turns: Turns, later: Sequence[int]) -> None:
        assert self.start is not None  # noqa: S101 - `tick` has checked
        folder = tempfile.TemporaryDirectory(prefix="verifix-look-")
        place = Path(folder.name)
        header = replace(self.header, format=VERIFIED, random=(), probability=None, earlier=())
        (place / TRAIN).write_bytes(spelled([header, *(replace(r, annotator="all", resolves=False) for r in known)]))
        job = {"about": self.about, "turns": len(turns), "labels": self._last, "later": list(later)}
        (place / JOB).write_text(json.dumps(job), encoding="utf-8")
        self._running = self.start(place), folder

    def _take(self, seen: int) -> None:
        """Read what a finished process has found, and keep it."""
        assert self._running is not None  # noqa: S101 - `tick` has checked
        process, folder = self._running
        self._running, place = None, Path(folder.name)
        _ended(process)
        try:
            look = msgspec.json.decode((place / FOUND).read_bytes(), type=Look)
            look = replace(look, since=seen if self.looks else look.turns)  # the first one replaces nothing
            self._keep(look)
            self.looks.append(look)
            self._failed = ""
        except (OSError, msgspec.DecodeError):
            lines = (place / LOG).read_text("utf-8", "replace").split("\n") if (place / LOG).exists() else []
            said = next((line for line in reversed(lines) if line.strip()), f"exit code {process.returncode}")
            self._failed = said.removeprefix("verifix: error: ")[:300]
            note(f"the correction from {self._last} labels failed: {self._failed}")
        folder.cleanup()

    def _keep(self, look: Look) -> None:
        """Append to the file; half a line, as a kill leaves it, is skipped when it is read."""
        with self.path.open("ab") as file:
            file.write(b"\n" * bool(file.tell()) + msgspec.json.encode(look) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        flush(self.path.parent)


def _ended(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of a process, and give back the pipe by which it sees whether this one lives."""
    process.wait()
    if process.stdin is not None:
        process.stdin.close()


def _read(path: Path) -> list[Look]:
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    return [look for look in map(_decoded, lines) if look is not None]


def _decoded(line: bytes) -> Look | None:
    try:
        return msgspec.json.decode(line, type=Look)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None  # empty, or not written to its end

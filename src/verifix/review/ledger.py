"""The file of verified records: every decision is appended and flushed to the disk before it counts."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import TracebackType

from filelock import FileLock, Timeout

from verifix.errors import DataError, OutputError, UsageError, one_line
from verifix.io.data.records import VERIFIED, Header, Record, header_of, read_lines, spelled
from verifix.io.data.tally import Tally
from verifix.io.data.verified import checked_records
from verifix.progress import note
from verifix.storage.atomic import special, write_atomically
from verifix.storage.transaction import flush


class Ledger:
    """Records of decisions, in memory and in their file; a context that holds the lock of the file.

    Parameters
    ----------
    path
        The file. It is made if it is not there, and continued if it is about the same queue.
    header
        The header of the queue.

    Raises
    ------
    UsageError
        If the file is open in another review, or cannot be one.
    DataError
        If it is about other samples, or a line of it is damaged.
    """

    def __init__(self, path: str | Path, header: Header) -> None:
        self.path = Path(path)
        self.header = replace(header, format=VERIFIED)
        self._tally = Tally()
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        self._one_at_a_time = threading.Lock()
        self._descriptor = -1
        self._latest = datetime.min.replace(tzinfo=timezone.utc)

    def __enter__(self) -> Ledger:
        """Lock, read and open the file."""
        self._check_place()
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise UsageError(
                f"{self.path} is open in another verifix review; use that page, or name another file with --out"
            ) from None
        try:
            self._read()
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the file, and let others open it."""
        with self._one_at_a_time:
            os.close(self._descriptor)
            self._descriptor = -1
        self._lock.release()

    def append(self, records: Sequence[Record]) -> list[Record]:
        """Write records, and return once they are on the disk.

        Parameters
        ----------
        records
            Without a time, which is set here.

        Returns
        -------
        list of Record
            With their time.

        Raises
        ------
        OutputError
            If they cannot be written; then none of them is in the file.
        """
        with self._one_at_a_time:
            now = self._now()
            timed = [replace(record, time=now) for record in records]
            self._write(spelled(timed))
            self._tally.add(timed)
        return timed

    def _now(self) -> str:
        """Return the time, which no two requests have in common: the records of one request are taken back together."""
        self._latest = max(datetime.now(timezone.utc), self._latest + timedelta(milliseconds=1))
        return self._latest.isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def tally(self) -> Tally:
        """Return what is decided at this moment, which later decisions leave as it is."""
        with self._one_at_a_time:
            return self._tally.copy()

    def _write(self, content: bytes) -> None:
        """Append bytes and flush them; what a full disk has taken of them is cut off again."""
        size = os.fstat(self._descriptor).st_size
        try:
            done = 0
            while done < len(content):
                done += os.write(self._descriptor, content[done:])
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, size)
            raise OutputError(
                f"{self.path} could not be written ({one_line(error)}), so the decision was not saved; check the disk"
            ) from error

    def _check_place(self) -> None:
        if self.path.suffix.lower() != ".jsonl":
            raise UsageError(f"{self.path} must end in .jsonl, because it holds one record per line; name another file")
        if what := special(self.path):
            raise UsageError(f"{self.path} is {what}; name a regular file")
        if self.path.is_dir() or not self.path.parent.is_dir():
            raise UsageError(f"{self.path} must be a file in a folder that exists; name another")

    def _read(self) -> None:
        """Continue a file of the same samples, or begin one."""
        if not self.path.exists():
            write_atomically(self.path, lambda place: place.write_bytes(spelled([self.header])))
            return
        before = header_of(self.path)
        if before is not None and (before.fingerprint, before.classes) != (
            self.header.fingerprint,
            self.header.classes,
        ):
            raise DataError(
                f"{self.path} holds records on other data ({before.data}, {before.length} samples) than the queue "
                f"({self.header.data}, {self.header.length} samples); name another file with --out"
            )
        _, records = read_lines(self.path, VERIFIED, Record)
        if before is not None and before != self.header:
            raise DataError(
                f"{self.path} holds the records of another queue of the same data; name another file with --out"
            )
        self._cut_unfinished()
        self._tally.add(checked_records(records, self.header, self.path))

    def _cut_unfinished(self) -> None:
        """Remove a last line without a line break: a decision that was never acknowledged."""
        with self.path.open("rb+") as file:
            content = file.read()
            end = content.rfind(b"\n") + 1
            if end == len(content):
                return
            file.truncate(end)
        flush(self.path)
        note(f"{self.path}: the last line was not complete, as after a crash, and was removed")


def earlier_records(header: Header) -> list[Record]:
    """Return the records of earlier rounds, which count for the random part of this one.

    Parameters
    ----------
    header
        That of the queue.

    Returns
    -------
    list of Record
        In the order of the rounds.

    Raises
    ------
    DataError
        If a file is about other samples.
    """
    found: list[Record] = []
    for path in header.earlier:
        before, records = read_lines(path, VERIFIED, Record)
        if before.fingerprint != header.fingerprint:
            raise DataError(f"{path} holds records on other data than {header.data}; write the queue again")
        found += checked_records(records, before, path)
    return found

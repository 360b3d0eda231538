"""A hidden folder beside the targets: filled first, then renamed into place together, or never seen.

A run that writes makes ``.NAME.XXXXXXXX.tmp`` in the folder of its targets and holds a lock in it for as long as it
lives; the system releases the lock of a run that dies. Everything is written and flushed there. Then a plan is written
that says what goes where. From that moment the writing is decided: the next run finishes what a kill has interrupted.
Without a plan, the next run removes the folder. Either way, files that belong together are all old or all new.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from verifix.errors import OutputError

LOCK, PLAN, NEW = "lock", "plan.json", "new"
LONGEST = 200
"""Bytes of a target's name that fit into the name of a hidden folder; longer names are hashed."""

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Numbers of Linux's <fcntl.h> and <linux/fs.h>."""


@dataclass(frozen=True)
class Move:
    """A new file or folder that is to replace its target.

    Attributes
    ----------
    folder
        The hidden folder.
    number
        Which output of the run it is.
    name
        Name of the target, in the folder around the hidden one.
    new, before
        `identity` of the new one, and of what the target was before; None if there was nothing.
    """

    folder: Path
    number: int
    name: str
    new: str | None
    before: str | None

    @property
    def staged(self) -> Path:
        """Where the new one lies, and, once both are exchanged, the old one."""
        return self.folder / NEW / str(self.number) / self.name

    @property
    def target(self) -> Path:
        """Where it goes."""
        return self.folder.parent / self.name

    @property
    def aside(self) -> Path:
        """Where an old folder waits if the system cannot exchange two."""
        return self.folder / NEW / f"{self.number}.old"

    @property
    def done(self) -> bool:
        """Whether the new one is in its place."""
        return identity(self.target) == self.new

    def check(self) -> None:
        """Raise an error if the new one or the target was changed since the move was planned."""
        now = identity(self.target)
        same = now == self.before or (now is None and identity(self.aside) == self.before)
        if not same or identity(self.staged) != self.new:
            raise OutputError(
                f"{self.target} was changed by another program in the meantime and was not replaced; run again"
            )

    def carry_out(self) -> None:
        """Put the new one in its place in one step; where the system cannot exchange folders, in two."""
        if self.done:
            return
        self.check()
        if not exchange(self.staged, self.target):
            if self.target.is_dir():
                self.target.rename(self.aside)
            self.staged.replace(self.target)

    def take_back(self) -> None:
        """Undo `carry_out`, as far as the old one is still there."""
        if self.done and not exchange(self.staged, self.target) and (self.before is None or self.aside.exists()):
            self.target.rename(self.staged)
        if self.aside.exists() and not self.target.exists():
            self.aside.rename(self.target)


def identity(path: Path) -> str | None:
    """Return the inode and modification time of a file or folder, which a rename keeps; None if there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return f"{found.st_ino}:{found.st_mtime_ns}"


def exchange(a: Path, b: Path) -> bool:
    """Swap two files or folders of one file system in one step; return False, with no change, if that fails."""
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError, TypeError):  # not on Linux
        return False
    return bool(renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0)


def flush(path: Path, *, forget: bool = False) -> None:
    """Wait until a file or folder is on the disk.

    Parameters
    ----------
    path
        The file or folder.
    forget
        Drop the system's copy in memory, so that the next read comes from the disk.
    """
    windows = os.name == "nt"
    if windows and path.is_dir():  # Windows opens no folders, and flushes only what can be written
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
        if forget and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


@contextmanager
def staged(parent: Path, name: str) -> Iterator[Path]:
    """Lend a hidden folder beside a target, and remove it at the end with everything in it.

    Parameters
    ----------
    parent
        Folder of the target.
    name
        Name of the target.

    Yields
    ------
    Path
        The folder, which holds only its lock.
    """
    folder, lock = _make(parent, name)
    try:
        yield folder
    finally:
        _remove(folder)
        lock.release()
        _remove(folder)  # Windows does not remove a lock that is held


def _make(parent: Path, name: str) -> tuple[Path, FileLock]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{_short(name)}.", suffix=".tmp", dir=parent))
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(blocking=False)
        except (Timeout, FileNotFoundError):  # another run removed the folder before it was locked
            continue
        except OSError:  # some network drives have no locks; there a killed run leaves its folder behind
            pass
        return folder, lock


def _remove(folder: Path) -> None:
    """Remove a hidden folder: the plan first, so that half of it is never carried out, and the lock, its mark, last."""
    with suppress(OSError):
        (folder / PLAN).unlink(missing_ok=True)
        if (folder / NEW).exists():
            shutil.rmtree(folder / NEW)
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()


def _short(name: str) -> str:
    encoded = os.fsencode(name)
    return name if len(encoded) <= LONGEST else hashlib.sha256(encoded).hexdigest()


def settle(path: Path) -> None:
    """Finish or remove what killed runs have left of writing a target; leave runs that are alive alone.

    Parameters
    ----------
    path
        The target.
    """
    pattern = re.compile(re.escape(f".{_short(path.name)}.") + r"\w{8}\.tmp")
    with suppress(OSError):
        for folder in sorted(path.parent.iterdir()):
            if pattern.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
                with suppress(OSError):  # a run that is alive holds the lock
                    _settle(folder)


def _settle(folder: Path) -> None:
    if not (folder / LOCK).exists():
        folder.rmdir()  # fails if it holds something: then it is not ours
        return
    with FileLock(folder / LOCK, blocking=False):
        for move in _read_plan(folder):
            with suppress(OutputError):
                move.carry_out()
        flush(folder.parent)
        _remove(folder)
    _remove(folder)


def _write_plan(folder: Path, moves: Sequence[Move]) -> None:
    """Write down what goes where; from now on the next run would finish it."""
    entries = [{key: value for key, value in asdict(move).items() if key != "folder"} for move in moves]
    draft = folder / NEW / PLAN
    draft.write_text(json.dumps(entries), encoding="utf-8")
    flush(draft)
    draft.replace(folder / PLAN)
    flush(folder)


def _read_plan(folder: Path) -> list[Move]:
    """Return the moves planned in a hidden folder; none if the plan is malformed or names a place outside."""
    try:
        moves = [Move(folder, **entry) for entry in json.loads((folder / PLAN).read_text(encoding="utf-8"))]
        return moves if all(Path(move.name).name == move.name and int(move.number) >= 0 for move in moves) else []
    except (OSError, ValueError, TypeError, RecursionError):
        return []


def carry_out(moves: Sequence[Move]) -> None:
    """Rename everything into its place: all of it, or nothing after an error.

    Parameters
    ----------
    moves
        What goes where.

    Raises
    ------
    OutputError
        If another program has changed a target in the meantime.
    """
    folders = list(dict.fromkeys(move.folder for move in moves))
    for move in moves:
        move.check()
    for folder in reversed(folders):  # the first output decides, so its plan comes last
        _write_plan(folder, [move for move in moves if move.folder == folder])
    try:
        for move in moves:
            move.carry_out()
        for folder in folders:
            flush(folder.parent)
    except BaseException:
        for move in reversed(moves):
            move.take_back()
        raise

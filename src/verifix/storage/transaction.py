"""A folder of one run's own, hidden beside its targets: filled first, renamed into place together, or never seen.

A run that writes makes ``.NAME.XXXXXXXX.tmp`` in the folder of its targets and holds a lock in it for as long as it
lives. Everything is written and flushed there. Then a plan is put down that says what goes where, and from that moment
the writing is decided: the next run finishes what a kill has interrupted. Without a plan it removes the folder. Either
way files that belong together are all old or all new.
"""

from __future__ import annotations

import ctypes
import fcntl
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

from verifix.errors import OutputError

LOCK, PLAN, ASIDE = "lock", "plan.json", "aside"
LONGEST = 200
"""Bytes of a target's name that fit into the name of a hidden folder; longer ones are hashed."""

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Numbers of Linux's <fcntl.h> and <linux/fs.h>."""

Identity = tuple[int, int]
"""Inode and time of the last change, in nanoseconds: a rename keeps both."""


@dataclass(frozen=True)
class Move:
    """Something new that is to take its place.

    Attributes
    ----------
    folder
        The hidden folder.
    place
        Where the new one lies in it.
    name
        Name of the target, in the folder around the hidden one.
    new
        Inode of the new one.
    before
        Identity of what the target was before; None if there was nothing.
    """

    folder: Path
    place: str
    name: str
    new: int
    before: Identity | None

    @property
    def staged(self) -> Path:
        """Where the new one lies, and, once both are exchanged, the old one."""
        return self.folder / self.place

    @property
    def target(self) -> Path:
        """Where it goes."""
        return self.folder.parent / self.name

    @property
    def aside(self) -> Path:
        """Where an old folder waits if the system cannot exchange two."""
        return self.staged.parent / ASIDE

    @property
    def done(self) -> bool:
        """Whether the new one is in its place."""
        return _inode(self.target) == self.new

    @property
    def possible(self) -> bool:
        """Whether the new one is there, and its place as it was when it was made."""
        now = identity(self.target)
        was = now == self.before or (now is None and self.before is not None and _inode(self.aside) == self.before[0])
        return was and _inode(self.staged) == self.new

    def carry_out(self) -> None:
        """Put the new one in its place in one step; where Linux cannot exchange folders, in two."""
        if self.done:
            return
        if not os.path.lexists(self.target):
            self.staged.rename(self.target)
        elif not exchange(self.staged, self.target):
            if self.staged.is_dir():
                self.target.rename(self.aside)
                self.staged.rename(self.target)
            else:
                self.staged.replace(self.target)

    def take_back(self) -> None:
        """Undo `carry_out`, as far as the old one is still there."""
        if self.done and os.path.lexists(self.staged):
            exchange(self.staged, self.target)
        elif self.done and (self.before is None or os.path.lexists(self.aside)):
            self.target.rename(self.staged)
        if os.path.lexists(self.aside) and not os.path.lexists(self.target):
            self.aside.rename(self.target)


def identity(path: Path) -> Identity | None:
    """Tell which file or folder a path is now; None if there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _inode(path: Path) -> int | None:
    found = identity(path)
    return None if found is None else found[0]


def exchange(a: Path, b: Path) -> bool:
    """Swap what two paths name, in one step.

    Parameters
    ----------
    a, b
        Two files or folders of one file system.

    Returns
    -------
    bool
        False if the system or the file system cannot; then nothing has changed.
    """
    try:
        renameat2 = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    return bool(renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0)


def flush(path: Path, *, forget: bool = False) -> None:
    """Wait until a file or folder is on the disk.

    Parameters
    ----------
    path
        Which.
    forget
        Let the system forget its copy in memory, so that what is read next comes from the disk.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        if forget and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


@contextmanager
def staged(parent: Path, name: str) -> Iterator[Path]:
    """Lend a hidden folder beside a target, and remove it in the end with whatever is in it.

    Parameters
    ----------
    parent
        Folder of the target.
    name
        Name of the target.

    Yields
    ------
    Path
        The folder, empty but for its lock.
    """
    folder, lock = _make(parent, name)
    try:
        yield folder
    finally:
        with suppress(OSError):
            _remove(folder)
        os.close(lock)


def _remove(folder: Path) -> None:
    """Remove a hidden folder: the plan first, since it is carried out or given up, and last the lock, its hallmark."""
    (folder / PLAN).unlink(missing_ok=True)
    for inner in folder.iterdir():
        if inner.is_dir():
            shutil.rmtree(inner)
        elif inner.name != LOCK:
            inner.unlink()
    (folder / LOCK).unlink(missing_ok=True)
    folder.rmdir()


def _make(parent: Path, name: str) -> tuple[Path, int]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{_short(name)}.", suffix=".tmp", dir=parent))
        try:
            lock = _locked(folder, certain=False)
        except BaseException:
            _remove(folder)
            raise
        if lock is not None:  # else another run took it for a leftover in the moment before it was locked
            return folder, lock


def _short(name: str) -> str:
    encoded = os.fsencode(name)
    return name if len(encoded) <= LONGEST else hashlib.sha256(encoded).hexdigest()


def _locked(folder: Path, *, certain: bool) -> int | None:
    """Lock a hidden folder; None if another process has it, or nobody can tell and it must be certain."""
    try:
        handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = _inode(folder / LOCK) == os.fstat(handle).st_ino
    except OSError as error:
        held = not (certain or isinstance(error, BlockingIOError))  # some network drives know no locks
    if held:
        return handle
    os.close(handle)
    return None


def settle(path: Path) -> None:
    """Finish, or remove, what killed runs have left of writing a target; runs that are alive are left alone.

    Parameters
    ----------
    path
        The target.
    """
    pattern = re.compile(re.escape(f".{_short(path.name)}.") + r"\w{8}\.tmp")
    with suppress(OSError):
        for folder in sorted(path.parent.iterdir()):
            if pattern.fullmatch(folder.name) and folder.is_dir() and not folder.is_symlink():
                with suppress(OSError):
                    _settle(folder)


def _settle(folder: Path) -> None:
    names = os.listdir(folder)  # noqa: PTH208 - names alone
    if names and LOCK not in names:  # somebody else's, by a strange chance
        return
    lock = _locked(folder, certain=True)
    if lock is None:
        return
    try:
        for move in _read_plan(folder):
            if not move.done and move.possible:
                move.carry_out()
        flush(folder.parent)
        _remove(folder)
    finally:
        os.close(lock)


def plan(folder: Path, moves: Sequence[Move]) -> None:
    """Put down what goes where; from now on the next run would finish it.

    Parameters
    ----------
    folder
        The hidden folder.
    moves
        All that it holds.
    """
    entries = [{key: value for key, value in asdict(move).items() if key != "folder"} for move in moves]
    draft = folder / f"{PLAN}.tmp"
    draft.write_text(json.dumps(entries), encoding="utf-8")
    flush(draft)
    draft.rename(folder / PLAN)
    flush(folder)


def _read_plan(folder: Path) -> list[Move]:
    """Return what was planned in a hidden folder, as far as it makes sense; a plan cannot name a place outside."""
    moves = []
    with suppress(OSError, ValueError, TypeError, KeyError):
        for entry in json.loads((folder / PLAN).read_text(encoding="utf-8")):
            before = None if entry["before"] is None else tuple(entry["before"])
            moves.append(Move(folder, **{**entry, "before": before}))
    return [move for move in moves if re.fullmatch(rf"\d+/{re.escape(Path(move.name).name)}", move.place)]


@contextmanager
def _alone(folders: Sequence[Path]) -> Iterator[None]:
    """Let no other run rename in these folders meanwhile, where folders can be locked."""
    handles = [os.open(folder, os.O_RDONLY) for folder in sorted(set(folders))]
    try:
        for handle in handles:
            with suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        for handle in handles:
            os.close(handle)


def carry_out(moves: Sequence[Move]) -> None:
    """Rename everything into its place: all, or after an error nothing.

    Parameters
    ----------
    moves
        What goes where; planned, or there is nothing to repair after a kill.

    Raises
    ------
    OutputError
        If another program has changed a target in the meantime.
    """
    folders = list(dict.fromkeys(move.folder.parent for move in moves))
    with _alone(folders):
        for move in moves:
            if not move.possible:
                raise OutputError(
                    f"{move.target} was changed by another program in the meantime; it was left as it is, so run again"
                )
        try:
            for move in moves:
                move.carry_out()
            for folder in folders:
                flush(folder)
        except BaseException:
            for move in reversed(moves):
                move.take_back()
            raise

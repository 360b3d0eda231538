"""Write files atomically: never half a file, and never over a file that is not to be replaced."""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from verifix.errors import OutputError, UsageError, VerifixError, one_line
from verifix.storage.transaction import Move, carry_out, flush, identity, settle, staged

SYSTEM = (Path("/dev"), Path("/proc"), Path("/sys"))
"""Folders whose entries are no files on a disk; a link there, such as /dev/stdout, is part of the system."""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - ordinary files, in memory
SPECIAL = {
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}
"""What is no regular file, and must never become one."""


def special(path: Path) -> str:
    """Say what a path is if it is neither a regular file, nor a folder, nor a link to one.

    Parameters
    ----------
    path
        Anything.

    Returns
    -------
    str
        Such as "a named pipe"; empty for what is none of these, or is not there.
    """
    start = path
    for _ in range(40):  # as many links as Linux follows
        if not path.is_symlink():
            break
        parent = path.parent.resolve()
        if any(parent.is_relative_to(place) for place in SYSTEM) and not parent.is_relative_to(SHARED_MEMORY):
            return "a link of the system" if path == start else f"a link to {path}, a link of the system"
        path = parent / path.readlink()
    try:
        mode = path.stat().st_mode
    except OSError:
        return ""
    return next((name for tells, name in SPECIAL.items() if tells(mode)), "")


def check_output(path: str | Path, *, force: bool = False, folder: bool = False, marks: Sequence[str] = ()) -> Path:
    """Check that a file or folder may be written, before the work for it begins.

    Parameters
    ----------
    path
        Where to; an empty folder in the place of a folder counts as nothing. A link to a file is replaced, and the file
        that it leads to is left alone: it may be in a cache that others use.
    force
        Allow a file, a link, or a folder that is not empty.
    folder
        Whether a folder is to be written.
    marks
        Files of which a folder that is replaced must hold one, so that a typing error replaces no other folder.

    Returns
    -------
    Path
        The path.

    Raises
    ------
    UsageError
        If something else is there, it exists and `force` is not set, or its parent folder does not exist.
    """
    path = Path(path)
    settle(path)
    if what := special(path):
        raise UsageError(f"{path} is {what}; only regular files are replaced, so name a file")
    if path.is_dir() and not folder:
        raise UsageError(f"{path} is a folder; name a file")
    if folder and (path.is_symlink() or (path.exists() and not path.is_dir())):
        raise UsageError(f"{path} is not a folder, but the output is one; choose another name")
    if os.path.lexists(path) and not (folder and not any(path.iterdir())):
        if not force:
            there = "exists already and is not empty" if folder else "exists already"
            raise UsageError(f"{path} {there}; choose another name, or pass --force to replace it")
        if folder and not any((path / mark).is_file() for mark in marks):
            raise UsageError(f"{path} is a folder with other content and is not replaced; choose another name")
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"the folder {path.parent} cannot be written to; choose another")
    return path


def check_apart(outputs: Sequence[Path], inputs: Sequence[str | Path]) -> None:
    """Check that no output is another output or an input, and that none lies in another output or holds an input.

    Parameters
    ----------
    outputs
        Files and folders to write.
    inputs
        Files and folders that are read. What is not there is no obstacle.

    Raises
    ------
    UsageError
        If they are not apart.
    """
    sources = [Path(source) for source in inputs if Path(source).exists()]
    for i, path in enumerate(outputs):
        if any(_spelled(path) == _spelled(other) or _same(path, other) for other in outputs[:i]):
            raise UsageError(f"{path} is the name of two outputs; choose different names")
        if any(_same(path, source) for source in sources):
            raise UsageError(f"{path} is an input; it is never overwritten, so choose another name")
        if any(_same(parent, source) for source in sources if source.is_dir() for parent in _place(path).parents):
            raise UsageError(f"{path} is inside an input folder; nothing is written there, so choose another place")
        inner = [*sources, *(other for other in outputs if other != path)]
        if any(_place(path) in _place(other).parents for other in inner):
            raise UsageError(f"{path} is a folder with inputs or other outputs in it; choose another name")


def _place(path: Path) -> Path:
    """Return where an entry of a folder is, without following the entry itself if it is a link."""
    return path.resolve() if path.name in ("", "..") else path.parent.resolve() / path.name


def _spelled(path: Path) -> str:
    """Return a path as a file system sees it that tells neither capitals nor forms of accents apart."""
    return unicodedata.normalize("NFC", str(_place(path))).casefold()


def _same(a: Path, b: Path) -> bool:
    """Tell whether two paths are one file: also as links to it, or where capitals do not matter."""
    return a.exists() and b.exists() and a.samefile(b)


@dataclass(frozen=True)
class Output:
    """Something to write.

    Attributes
    ----------
    path
        Where to.
    fill
        Receives the path to write to instead, which has the same name: a file to make, or an empty folder to fill.
    folder
        Whether it is a folder.
    marks
        See `check_output`.
    """

    path: Path
    fill: Callable[[Path], object]
    folder: bool = False
    marks: tuple[str, ...] = ()


def write_together(outputs: Sequence[Output], *, force: bool = False) -> None:
    """Write files and folders that belong together: after an error, a kill or a full disk, all or none is there.

    Each is filled in a hidden folder beside its place and flushed. Then all are renamed into place; if the process is
    killed in that moment, the next run that writes there finishes it.

    Parameters
    ----------
    outputs
        What to write, filled in this order.
    force
        Replace what exists, keeping its permissions.

    Raises
    ------
    OutputError
        If one cannot be written; what was there before is untouched.
    """
    for output in outputs:
        check_output(output.path, force=force, folder=output.folder, marks=output.marks)
    with ExitStack() as stack:
        folders: dict[Path, Path] = {}
        moves = []
        for number, output in enumerate(outputs):
            with _named(output.path):
                parent = output.path.parent
                if parent not in folders:
                    folders[parent] = stack.enter_context(staged(parent, output.path.name))
                moves.append(_fill(output, folders[parent], number))
        with _named(outputs[0].path):
            carry_out(moves)


def _fill(output: Output, folder: Path, number: int) -> Move:
    """Make one output in its hidden folder, with the permissions it will have, and wait until it is on the disk."""
    move = Move(folder, number, output.path.name, None, identity(output.path))
    new = move.staged
    new.parent.mkdir(parents=True)
    if output.folder:
        new.mkdir()
    output.fill(new)
    if output.path.exists():
        _like(new, output.path.stat())
    for inner in (*new.rglob("*"), new, new.parent):
        flush(inner)
    return replace(move, new=identity(new))


def _like(new: Path, old: os.stat_result) -> None:
    """Give something new the permissions of what it replaces, and its owner if that is allowed."""
    with suppress(OSError, AttributeError):  # Windows has no owners
        os.chown(new, old.st_uid, old.st_gid)
    new.chmod(stat.S_IMODE(old.st_mode))


def write_atomically(path: str | Path, write: Callable[[Path], object], *, force: bool = False) -> Path:
    """Let `write` make a file beside its place, make sure that it is on the disk, and rename it to `path`.

    Parameters
    ----------
    path
        Where to.
    write
        Receives the path to write to instead.
    force
        Replace a file that exists, keeping its permissions.

    Returns
    -------
    Path
        The path.

    Raises
    ------
    OutputError
        If it cannot be written; what was there before is untouched.
    """
    write_together([Output(Path(path), write)], force=force)
    return Path(path)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Turn an error into one line that says what could not be written, and why."""
    try:
        yield
    except VerifixError:
        raise
    except Exception as error:
        line = one_line(error, 200)
        raise OutputError(f"{path} could not be written ({type(error).__name__}: {line}); check the disk") from error


def file_digest(path: Path) -> str:
    """Return the SHA-256 (hexadecimal) of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def existing(path: str | Path) -> Path:
    """Return the path of a file that is there."""
    if not Path(path).is_file():
        raise UsageError(f"{path} does not exist or is not a file; check the path")
    return Path(path)

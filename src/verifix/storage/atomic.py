"""Write files atomically: never half a file, and never over a file that is not to be replaced."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from verifix.errors import OutputError, UsageError, VerifixError
from verifix.storage.transaction import Move, carry_out, flush, identity, plan, settle, staged


def check_output(path: str | Path, *, force: bool = False) -> Path:
    """Check that a file may be written, before the work for it begins.

    Parameters
    ----------
    path
        Where to.
    force
        Allow a file that exists.

    Returns
    -------
    Path
        The path.

    Raises
    ------
    UsageError
        If the file exists and `force` is not set, or its folder does not exist.
    """
    path = Path(path)
    settle(path)
    if path.is_dir():
        raise UsageError(f"{path} is a folder; name a file")
    if path.exists() and not force:
        raise UsageError(f"{path} exists already; choose another name, or pass --force to replace it")
    _check_parent(path)
    return path


def check_folder_output(path: str | Path, *, force: bool = False, marks: Sequence[str] = ()) -> Path:
    """Check that a folder may be written, before the work for it begins.

    Parameters
    ----------
    path
        Where to; a folder that is empty counts as none.
    force
        Allow a folder that is not empty.
    marks
        Files of which a folder that is replaced must hold one, so that a slip of the keyboard replaces no other.

    Returns
    -------
    Path
        The path.

    Raises
    ------
    UsageError
        If something else is there, or its parent folder does not exist.
    """
    path = Path(path)
    settle(path)
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise UsageError(f"{path} is not a folder, and a folder is to be written; choose another name")
    if path.exists() and any(path.iterdir()):
        if not force:
            raise UsageError(f"{path} exists already and is not empty; choose another name, or pass --force")
        if not any((path / mark).is_file() for mark in marks):
            raise UsageError(f"{path} is a folder of other things and is not replaced; choose another name")
    _check_parent(path)
    return path


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} does not exist; create it first")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(f"the folder {path.parent} cannot be written to; choose another")


def check_outputs(outputs: Sequence[Path], inputs: Sequence[str | Path], *, force: bool) -> None:
    """Check all files that a command will write, before it begins.

    Parameters
    ----------
    outputs
        Where to.
    inputs
        What the command reads; never overwritten, whatever `force` says.
    force
        Allow other files that exist.

    Raises
    ------
    UsageError
        If two outputs are one file, one is an input, or one cannot be written.
    """
    check_apart(outputs, inputs)
    for path in outputs:
        check_output(path, force=force)


def check_apart(outputs: Sequence[Path], inputs: Sequence[str | Path]) -> None:
    """Check that no output is another output or an input, and that none lies in another output or holds an input.

    Parameters
    ----------
    outputs
        Files and folders to write.
    inputs
        Files and folders that are read.

    Raises
    ------
    UsageError
        If they are not apart.
    """
    for i, path in enumerate(outputs):
        if path.resolve() in {other.resolve() for other in outputs[:i]}:
            raise UsageError(f"{path} is to be written twice; choose different names")
        if any(path.exists() and Path(source).exists() and path.samefile(source) for source in inputs):
            raise UsageError(f"{path} is an input; it is never overwritten, so choose another name")
        if any(Path(source).is_dir() and Path(source).resolve() in path.resolve().parents for source in inputs):
            raise UsageError(f"{path} lies in a folder that is read; nothing is written there, so choose another place")
        inner = [*inputs, *(other for other in outputs if other != path)]
        if any(path.resolve() in Path(other).resolve().parents for other in inner):
            raise UsageError(f"{path} is a folder with inputs or other outputs in it; choose another name")


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
        See `check_folder_output`.
    """

    path: Path
    fill: Callable[[Path], object]
    folder: bool = False
    marks: tuple[str, ...] = ()

    def check(self, force: bool) -> None:
        """Check that it may be written; see `check_output` and `check_folder_output`."""
        if self.folder:
            check_folder_output(self.path, force=force, marks=self.marks)
        else:
            check_output(self.path, force=force)


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
        output.check(force)
    with ExitStack() as stack:
        folders: dict[Path, Path] = {}
        moves = []
        for i, output in enumerate(outputs):
            with _named(output.path):
                parent = output.path.parent
                if parent not in folders:
                    folders[parent] = stack.enter_context(staged(parent, output.path.name))
                moves.append(_fill(output, folders[parent], i))
        with _named(outputs[0].path):
            for folder in reversed(folders.values()):  # the first output decides, so its plan comes last
                plan(folder, [move for move in moves if move.folder == folder])
            carry_out(moves)


def _fill(output: Output, folder: Path, number: int) -> Move:
    """Make one output in its hidden folder, with the permissions it will have, and wait until it is on the disk."""
    path, before = output.path, identity(output.path)
    place = f"{number}/{path.name}"
    new = folder / place
    new.parent.mkdir()
    if output.folder:
        new.mkdir()
    output.fill(new)
    _like(new, path if path.exists() else None, folder=output.folder)
    for inner in (*new.rglob("*"), new, new.parent):
        flush(inner)
    return Move(folder, place, path.name, new.lstat().st_ino, before)


def _like(new: Path, old: Path | None, *, folder: bool) -> None:
    """Give something new the permissions of what it replaces, and its owner if that is allowed."""
    if old is None:
        new.chmod((0o777 if folder else 0o666) & ~_umask())
        return
    was = old.stat()
    with suppress(OSError):
        os.chown(new, was.st_uid, was.st_gid)
    new.chmod(stat.S_IMODE(was.st_mode))


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
    """Say in one line what could not be written, and why."""
    try:
        yield
    except VerifixError:
        raise
    except Exception as error:
        line = " ".join(str(error).split())[:200]
        raise OutputError(f"{path} could not be written ({type(error).__name__}: {line}); check the disk") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def file_digest(path: Path) -> str:
    """Return the SHA-256 (hexadecimal) of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def existing(path: str | Path) -> Path:
    """Return the path of a file that is there."""
    if not Path(path).is_file():
        raise UsageError(f"{path} does not exist or is not a file; check the path")
    return Path(path)


def reason_of(error: Exception) -> str:
    """Say in one line what torch.load found, and what to do."""
    text = " ".join(str(error).split())
    found = re.search(r"GLOBAL (\S+)", text)
    if found:
        return (
            f"it holds a {found[1]}, and such objects can run code; if you trust the file, load it with "
            "weights_only=False, and save its state dict alone, with torch.save(state_dict, …)"
        )
    inner = text.partition("WeightsUnpickler error: ")[2].partition(" Check the documentation")[0]
    line = (inner or text)[:200].rstrip(". ") or type(error).__name__
    return f"{line}; check that it is complete and a file of torch.save, or save its state dict as safetensors"

"""Files that survive: written beside their target, flushed to the disk, then renamed into place together."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import re
import stat
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verifix.errors import CheckpointError, OutputError, UsageError, VerifixError
from verifix.staging import Move, carry_out, flush, identity, plan, settle, staged

HARMLESS: tuple[Any, ...] = (
    argparse.Namespace,
    datetime.date,
    datetime.datetime,
    datetime.time,
    datetime.timedelta,
    datetime.timezone,
    *(
        (kind, f"{module}.{kind.__name__}")
        for kind in (pathlib.PosixPath, pathlib.PurePosixPath)
        for module in ("pathlib", "pathlib._local")
    ),
)
"""Classes beside torch's own that a ``.pt`` file may hold: they keep what they are given and do nothing else. timm puts
its arguments in a Namespace; Python 3.13 calls the module of paths by another name."""


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


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], *, force: bool = False
) -> Path:
    """Write tensors atomically; the same tensors and metadata give the same bytes.

    Parameters
    ----------
    path
        Where to.
    tensors
        By name.
    metadata
        Strings by name.
    force
        Replace a file that exists.

    Returns
    -------
    Path
        The path.
    """
    return write_atomically(path, lambda temporary: fill_safetensors(temporary, tensors, metadata), force=force)


def fill_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors into a file that is being made, read it back from the disk, and compare.

    Parameters
    ----------
    path
        The file; the same tensors and metadata give the same bytes.
    tensors
        By name.
    metadata
        Strings by name.

    Raises
    ------
    CheckpointError
        If it does not read back as it was written.
    """
    from safetensors.torch import save_file

    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    save_file(contiguous, path, dict(metadata))
    _sort_header(path)
    flush(path, forget=True)
    again, about = read_safetensors(path)
    same = again.keys() == contiguous.keys() and all(_same_bits(again[name], contiguous[name]) for name in again)
    if about != dict(metadata) or not same:
        raise CheckpointError(f"{path.name} does not read back as it was written; check the disk")


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _sort_header(path: Path) -> None:
    """Put the metadata in the order of its names: the library writes several entries in an arbitrary one."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header.get("__metadata__", {}).items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:
            file.seek(8)
            file.write(text.ljust(size))


def file_digest(path: Path) -> str:
    """Return the SHA-256 (hexadecimal) of a file."""
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def _existing(path: str | Path) -> Path:
    if not Path(path).is_file():
        raise UsageError(f"{path} does not exist or is not a file; check the path")
    return Path(path)


def read_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read all tensors and the metadata of a safetensors file.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    tensors : dict
        By name, on the CPU.
    metadata : dict
        Strings by name.

    Raises
    ------
    UsageError
        If there is no such file.
    CheckpointError
        If it is not a valid safetensors file.
    """
    from safetensors import safe_open

    path = _existing(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except Exception as error:  # the library's own, and those of torch on a header that only looks right
        line = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} is not a readable safetensors file: {line}; check that it is complete") from None


def read_torch(path: str | Path, storages: list[torch.UntypedStorage] | None = None) -> object:
    """Read a ``.pt`` file without running any code in it.

    Parameters
    ----------
    path
        The file.
    storages
        Receives the memory behind the tensors, in the order in which the file numbers it.

    Returns
    -------
    object
        Its content: tensors and plain containers.

    Raises
    ------
    UsageError
        If there is no such file.
    CheckpointError
        If it is damaged, or holds more than tensors and plain containers.
    """
    path = _existing(path)
    if not path.stat().st_size:
        raise CheckpointError(f"{path} cannot be read: it is empty; give the whole file")

    def here(storage: torch.UntypedStorage, _: str) -> torch.UntypedStorage:
        """Leave all on the CPU, wherever it was saved."""
        if storages is not None:
            storages.append(storage)
        return storage

    _check_size(path)
    known = torch.serialization.get_safe_globals()  # leaving the context would take away what the user has allowed
    try:
        with torch.serialization.safe_globals([kind for kind in HARMLESS if kind not in known]), _quiet():
            return torch.load(path, map_location=here, weights_only=True)  # type: ignore[arg-type]  # it gets untyped ones
    except Exception as error:  # torch.load raises nearly anything on a damaged file
        raise CheckpointError(f"{path} cannot be read with weights_only=True: {_why(error)}") from None


def _check_size(path: Path) -> None:
    """Refuse an archive that unpacks to more than it has bytes: torch.save stores what it writes as it is."""
    unpacked = 0
    with suppress(Exception), zipfile.ZipFile(path) as archive:  # what is no such archive, torch.load may know
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size + 2**26:
        raise CheckpointError(
            f"{path} cannot be read: it would unpack to {unpacked / 2**30:.1f} GiB, and torch.save packs nothing; "
            "save its state dict again"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from telling, beside an error, what it thinks of a file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _why(error: Exception) -> str:
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

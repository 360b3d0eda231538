"""Read and write files of tensors: safetensors and torch's own format, without running code."""

from __future__ import annotations

import argparse
import datetime
import json
import pathlib
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verifix.errors import CheckpointError
from verifix.storage.atomic import existing, reason_of, write_atomically
from verifix.storage.transaction import flush

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

    path = existing(path)
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
    path = existing(path)
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
        raise CheckpointError(f"{path} cannot be read with weights_only=True: {reason_of(error)}") from None


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

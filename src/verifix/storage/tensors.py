"""Read and write files of tensors: safetensors and torch's own format, without running code."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import pathlib
import re
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verifix.errors import CheckpointError, one_line
from verifix.storage.atomic import existing, file_digest, write_atomically
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
    from safetensors.torch import save

    content = memoryview(save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}))
    size = int.from_bytes(content[:8], "little")
    header = safetensors_header(json.loads(bytes(content[8 : 8 + size])), dict(sorted(metadata.items())))
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for piece in (len(header).to_bytes(8, "little"), header, content[8 + size :]):
            file.write(piece)
            digest.update(piece)
    flush(path, forget=True)
    if file_digest(path) != digest.hexdigest():
        raise CheckpointError(f"{path.name} does not read back as it was written; check the disk")


def safetensors_header(places: Mapping[str, Any], metadata: Mapping[str, str]) -> bytes:
    """Return the header of a safetensors file: its metadata first, in the given order, padded as the format requires.

    Parameters
    ----------
    places
        What a header says of each tensor.
    metadata
        Strings by name.

    Returns
    -------
    bytes
        The header, without its length.
    """
    text = json.dumps({"__metadata__": metadata, **places}, separators=(",", ":"), ensure_ascii=False).encode()
    return text.ljust(-(-len(text) // 8) * 8)


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
        line = one_line(error, 200)
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
        with (
            torch.serialization.safe_globals([kind for kind in HARMLESS if kind not in known]),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # torch warns beside the error that it raises
            return torch.load(path, map_location=here, weights_only=True)  # type: ignore[arg-type]  # it gets untyped ones
    except Exception as error:  # torch.load raises nearly anything on a damaged file
        raise CheckpointError(f"{path} cannot be read with weights_only=True: {_reason(error)}") from None


def _check_size(path: Path) -> None:
    """Refuse an archive that unpacks to more than it has bytes: torch.save stores what it writes as it is."""
    unpacked = 0
    with suppress(Exception), zipfile.ZipFile(path) as archive:  # what is no such archive, torch.load may know
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size + 2**26:
        raise CheckpointError(
            f"{path} cannot be read: it would unpack to {unpacked / 2**30:.1f} GiB, but torch.save does not compress; "
            "save its state dict again"
        )


def _reason(error: Exception) -> str:
    """Return in one line why torch.load refused a file, and what to do."""
    text = one_line(error)
    found = re.search(r"GLOBAL (\S+)", text)
    if found:
        return (
            f"it holds a {found[1]}, and such objects can run code; if you trust the file, load it with "
            "weights_only=False, and save only its state dict, with torch.save(state_dict, …), and extra state as "
            "tensors, numbers, strings and containers"
        )
    inner = text.partition("WeightsUnpickler error: ")[2].partition(" Check the documentation")[0]
    line = (inner or text)[:200].rstrip(". ")
    return f"{line}; check that it is complete and a file of torch.save, or save its state dict as safetensors"

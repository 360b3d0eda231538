"""Files of weights: read without running code, written with the same content, and compared."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verifix.errors import CheckpointError, UsageError
from verifix.io.checkpoints.byte_layout import (
    LONGEST_COMMENT,
    damaged_entry,
    marked_header,
    read_comment,
    read_header,
    write_archive_like,
    write_comment,
    write_tensors_like,
)
from verifix.io.checkpoints.key_matching import listed
from verifix.io.checkpoints.sharded import INDEX
from verifix.io.checkpoints.state_dict import Found, find_states
from verifix.model.tensors import tensor_digest
from verifix.storage.atomic import file_digest
from verifix.storage.tensors import read_safetensors, read_torch
from verifix.storage.transaction import flush

TORCH = (".pt", ".pth", ".pth.tar", ".bin", ".ckpt")
"""Endings of files that torch.save has written, those of timm and Lightning among them."""

SUFFIXES = (".safetensors", *TORCH)


@dataclass(frozen=True)
class Part:
    """One file of weights.

    Attributes
    ----------
    path
        The file.
    content
        All of it: for a file of torch.save whatever it holds, for safetensors the tensors.
    found
        The state dicts in it, by kind; their tensors are the very ones in `content`.
    metadata
        The metadata of a safetensors file; of a file of torch.save the mark of a correction, if it has one.
    sha256
        SHA-256 of the file.
    head
        The header of a safetensors file; the comment of an archive of torch.save.
    storages
        The memory behind the tensors of a file of torch.save, in its order.
    """

    path: Path
    content: Any
    found: Mapping[str, Found]
    metadata: Mapping[str, str]
    sha256: str
    head: bytes
    storages: tuple[torch.UntypedStorage, ...] = ()

    @property
    def is_safetensors(self) -> bool:
        """Whether the file is a safetensors file."""
        return self.path.suffix == ".safetensors"

    def marked(self, provenance: Mapping[str, Any]) -> bytes:
        """Return the head of a corrected copy, which says what it was made from.

        Parameters
        ----------
        provenance
            Plain data.

        Returns
        -------
        bytes
            A header or a comment.
        """
        mark = json.dumps(provenance, sort_keys=True)
        if self.is_safetensors:
            return marked_header(self.head, mark)
        comment = json.dumps({"verifix": mark}).encode()
        short = json.dumps({"verifix": json.dumps({"verifix": provenance.get("verifix")})}).encode()
        return comment if len(comment) <= LONGEST_COMMENT else short

    def write(self, path: Path, head: bytes) -> None:
        """Write the content as it is now, read it back from the disk, and compare.

        Parameters
        ----------
        path
            Where to.
        head
            The header or comment. All bytes but these and the changed tensors' are those of the source, unless that
            is in the form of torch before 1.6.

        Raises
        ------
        CheckpointError
            If the source has changed since it was read, or the copy does not read back as it was written.
        """
        if file_digest(self.path) != self.sha256:
            raise CheckpointError(f"{self.path} was changed after it was read; run again")
        if self.is_safetensors:
            write_tensors_like(self.path, path, head, self.content)
        elif not write_archive_like(self.path, path, self.storages, head):
            buffer = io.BytesIO()  # by its own hand torch would put the name of the file into it
            torch.save(self.content, buffer)
            path.write_bytes(buffer.getvalue())
            write_comment(path, head)
        flush(path, forget=True)
        again = read_safetensors(path)[0] if self.is_safetensors else read_torch(path)
        if digests(again) != digests(self.content):
            raise CheckpointError(f"{path.name} does not read back as it was written; check the disk")


def read_part(path: Path) -> Part:
    """Read a file of weights.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Part
        Its content.

    Raises
    ------
    UsageError
        If there is no such file, or its suffix is another.
    CheckpointError
        If it is damaged, or holds no state dict.
    """
    if not path.suffix and not path.exists():
        raise UsageError(f"{path} does not exist; check the path")
    if not path.name.endswith(SUFFIXES):
        raise UsageError(
            f"{path} has no known checkpoint format; give a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file, an "
            f"index ({INDEX}), or a folder of save_pretrained"
        )
    storages: list[torch.UntypedStorage] = []
    if path.suffix == ".safetensors":
        content, metadata = read_safetensors(path)
        head = read_header(path)
    else:
        content, metadata, head = _read_archive(path, storages)
    found = find_states(content)
    if not found:
        keys = listed([str(key) for key in content]) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"{path} holds no state dict (it holds {keys or 'nothing'}); save model.state_dict() in it"
        )
    return Part(path, content, found, metadata, file_digest(path), head, tuple(storages))


def _read_archive(path: Path, storages: list[torch.UntypedStorage]) -> tuple[Any, dict[str, str], bytes]:
    """Read a file of torch.save: its content, the mark of a correction if it has one, and its comment."""
    content = read_torch(path, storages)
    damaged = damaged_entry(path)
    if damaged is not None:
        raise CheckpointError(f"{path} is damaged: {damaged} in it does not match its CRC-32; restore it from a copy")
    comment = read_comment(path)
    try:
        mark = json.loads(comment)["verifix"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return content, {}, comment
    return content, {"verifix": str(mark)}, comment


def digests(content: object) -> dict[str, str]:
    """Return everything in a content by its place: tensors by their SHA-256, the rest as text."""
    return {place: _text(leaf) for place, leaf in leaves(content)}


def tensors_in(content: object) -> dict[str, Tensor]:
    """Return every tensor in a content by its place, but for those of unusual forms."""
    return {place: leaf for place, leaf in leaves(content) if isinstance(leaf, Tensor) and _usual(leaf)}


def _usual(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_quantized


def _text(leaf: object) -> str:
    if isinstance(leaf, Tensor) and _usual(leaf):
        return tensor_digest(leaf)
    return repr(sorted(leaf, key=repr) if isinstance(leaf, (set, frozenset)) else leaf)


def leaves(content: object, place: str = "") -> Iterator[tuple[str, object]]:
    """Yield everything in a content that holds nothing else, with its place: keys joined by slashes."""
    if isinstance(content, argparse.Namespace):
        content = vars(content)
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from leaves(value, f"{place}/{key!r}")
    elif isinstance(content, (list, tuple)):
        for i, value in enumerate(content):
            yield from leaves(value, f"{place}/{i}")
    else:
        yield place, content

"""Where each tensor lies in a file, so that a corrected copy differs from its source in those bytes and a mark alone.

A safetensors file is a header in JSON and one block of bytes. A file of torch.save is a ZIP archive whose entries are
not compressed: one for each piece of memory behind the tensors, each with a CRC-32 that torch itself does not check.
The mark of a corrected archive is the archive's comment: torch.load ignores it, a copy of the file keeps it, and a file
that is loaded and saved again has none.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from verifix.model.tensors import tensor_bytes
from verifix.storage.tensors import safetensors_header

LONGEST_COMMENT = 65_535
NO_ARCHIVE = (zipfile.BadZipFile, OSError, struct.error, NotImplementedError, UnicodeDecodeError)
"""Errors of zipfile on a file that is no archive, or a damaged one."""


def read_header(path: Path) -> bytes:
    """Return the header of a safetensors file that has been read without an error."""
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def marked_header(header: bytes, mark: str) -> bytes:
    """Return a header with one more entry in its metadata, ``verifix``, and everything else in its order."""
    content = json.loads(header)
    metadata = {**content.pop("__metadata__", {}), "verifix": mark}
    return safetensors_header(content, metadata)


def write_tensors_like(source: Path, path: Path, header: bytes, tensors: Mapping[str, Tensor]) -> None:
    """Copy a safetensors file with another header and other values of the same shapes and dtypes.

    Parameters
    ----------
    source
        The file to copy.
    path
        Where to.
    header
        The new header, with the places of the old one.
    tensors
        Every tensor by key.
    """
    old_header = read_header(source)
    places, start = json.loads(old_header), 8 + len(header)
    with source.open("rb") as old, path.open("wb") as new:
        old.seek(8 + len(old_header))
        new.write(len(header).to_bytes(8, "little") + header)
        shutil.copyfileobj(old, new)
        for key, tensor in tensors.items():
            new.seek(start + places[key]["data_offsets"][0])
            new.write(tensor_bytes(tensor))


@dataclass(frozen=True)
class Entry:
    """One file in an archive.

    Attributes
    ----------
    name
        Its name, without the folder that holds everything.
    start, size
        Its bytes in the archive.
    crc
        Their CRC-32 as the archive says.
    crc_places
        Where it says so: in the list of contents, and before or after the bytes.
    plain
        Whether the bytes are not compressed.
    """

    name: str
    start: int
    size: int
    crc: int
    crc_places: tuple[int, int]
    plain: bool

    def read(self, file: BinaryIO) -> bytes:
        """Return its bytes."""
        file.seek(self.start)
        return file.read(self.size)


def entries(path: Path) -> list[Entry]:
    """Return what is in an archive, in its order; nothing if the file is none."""
    with suppress(*NO_ARCHIVE), zipfile.ZipFile(path) as archive, path.open("rb") as file:
        return list(_entries(archive, file))
    return []


def _entries(archive: zipfile.ZipFile, file: BinaryIO) -> Iterator[Entry]:
    listed = archive.start_dir
    for info in archive.infolist():
        file.seek(listed + 28)
        in_list, listed = listed + 16, listed + 46 + sum(struct.unpack("<3H", file.read(6)))
        file.seek(info.header_offset + 26)
        start = info.header_offset + 30 + sum(struct.unpack("<2H", file.read(4)))
        beside = info.header_offset + 14
        if info.flag_bits & 8:  # the number stands after the bytes, perhaps behind a signature
            file.seek(start + info.compress_size)
            beside = start + info.compress_size + 4 * (file.read(4) == b"PK\x07\x08")
        plain = info.compress_type == zipfile.ZIP_STORED
        name = info.filename.partition("/")[2]
        yield Entry(name, start, info.compress_size, info.CRC, (in_list, beside), plain)


def damaged_entry(path: Path) -> str | None:
    """Find an entry of an archive whose bytes are not those that were written.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    str or None
        Its name. None if all are intact, or none of the numbers fits, because torch.save was told not to compute them.
    """
    plain = [entry for entry in entries(path) if entry.plain]
    with path.open("rb") as file:
        wrong = [entry.name for entry in plain if zlib.crc32(entry.read(file)) != entry.crc]
    return wrong[0] if wrong and len(wrong) < len(plain) else None


def read_comment(path: Path) -> bytes:
    """Return the comment of an archive; empty if there is none, or the file is no archive."""
    with suppress(*NO_ARCHIVE), zipfile.ZipFile(path) as archive:
        return archive.comment
    return b""


def write_comment(path: Path, comment: bytes) -> bool:
    """Give an archive another comment, up to 65,535 bytes; return False, with no change, if it ends in another way."""
    before = read_comment(path)
    with path.open("r+b") as file:
        place = file.seek(-len(before) - 2, os.SEEK_END)
        if file.read(2) != len(before).to_bytes(2, "little"):
            return False
        file.seek(place)
        file.write(len(comment).to_bytes(2, "little") + comment)
        file.truncate()
    return True


def write_archive_like(source: Path, path: Path, storages: Sequence[torch.UntypedStorage], comment: bytes) -> bool:
    """Copy a file of torch.save with other values in its tensors, and another comment.

    Parameters
    ----------
    source
        The file to copy.
    path
        Where to.
    storages
        The memory behind its tensors, in the order in which the file numbers it, as `read_torch` returns it.
    comment
        The comment.

    Returns
    -------
    bool
        False if the source has another form, such as that of torch before 1.6; then nothing of use is written.
    """
    every = entries(source)
    numbered = {int(found[1]): entry for entry in every if (found := re.fullmatch(r"data/(\d+)", entry.name))}
    data = [numbered[number] for number in sorted(numbered) if numbered[number].size]
    full = [storage for storage in storages if storage.nbytes()]  # empty ones are read again each time
    fits = [entry.size for entry in data] == [storage.nbytes() for storage in full]
    with source.open("rb") as file:
        order = [entry.read(file) for entry in every if entry.name == "byteorder"]
    if not (data and fits and all(entry.plain for entry in data) and order in ([], [sys.byteorder.encode()])):
        return False
    shutil.copyfile(source, path)
    with path.open("r+b") as file:
        for entry, storage in zip(data, full, strict=True):
            _replace(file, entry, storage)
    return write_comment(path, comment)


def _replace(file: BinaryIO, entry: Entry, storage: torch.UntypedStorage) -> None:
    """Write new bytes, if they are new, and their CRC-32, if the old one was right."""
    new, old = tensor_bytes(torch.empty(0, dtype=torch.uint8).set_(storage)), entry.read(file)
    if new == old:
        return
    file.seek(entry.start)
    file.write(new)
    for place in entry.crc_places if zlib.crc32(old) == entry.crc else ():
        file.seek(place)
        file.write(zlib.crc32(new).to_bytes(4, "little"))

"""Where in a file each tensor lies, so that a corrected copy differs from its source in those bytes and a mark alone.

A safetensors file is a header in JSON and one block of bytes. A file of torch.save is a ZIP archive whose entries are
not compressed: one for each piece of memory behind the tensors, each with a CRC-32 that torch itself does not check.
The mark of a corrected archive is the archive's comment: torch.load takes no notice of it, a copy of the file keeps
it, and a file that is loaded and saved again has none.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from verifix.errors import CheckpointError
from verifix.model.tensors import tensor_bytes

PIECE = 1 << 22
LONGEST_COMMENT = 65_535
END = struct.Struct("<4s4H2LH")
"""The last record of an archive; its last number is the length of the comment after it."""


def read_header(path: Path) -> bytes:
    """Return the header of a safetensors file that has been read without an error."""
    with path.open("rb") as file:
        return file.read(int.from_bytes(file.read(8), "little"))


def marked_header(header: bytes, mark: str) -> bytes:
    """Return a header with one more entry in its metadata, ``verifix``, and everything else in its order.

    Parameters
    ----------
    header
        As `read_header` returns it.
    mark
        The entry.

    Returns
    -------
    bytes
        The new header, padded as the format wants it.
    """
    content = json.loads(header)
    metadata = {**content.pop("__metadata__", {}), "verifix": mark}
    text = json.dumps({"__metadata__": metadata, **content}, separators=(",", ":"), ensure_ascii=False).encode()
    return text.ljust(-(-len(text) // 8) * 8)


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
    with source.open("rb") as old, path.open("wb") as new:
        start = 8 + int.from_bytes(old.read(8), "little")
        places = json.loads(old.read(start - 8))
        old.seek(start)
        new.write(len(header).to_bytes(8, "little") + header)
        shutil.copyfileobj(old, new, PIECE)
        for key, tensor in tensors.items():
            first, last = places[key]["data_offsets"]
            value = tensor_bytes(tensor)
            if len(value) != last - first:
                raise CheckpointError(f"{source} holds {last - first} bytes for {key!r} instead of {len(value)}")
            new.seek(8 + len(header) + first)
            new.write(value)


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


def entries(path: Path) -> list[Entry]:
    """List what is in an archive.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    list of Entry
        In the order of the archive; empty if it is none.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            return list(_entries(archive, file))
    except (zipfile.BadZipFile, OSError, struct.error, NotImplementedError, UnicodeDecodeError):
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
        wrong = [entry.name for entry in plain if _crc(file, entry) != entry.crc]
    return wrong[0] if wrong and len(wrong) < len(plain) else None


def _crc(file: BinaryIO, entry: Entry) -> int:
    crc, left = 0, entry.size
    file.seek(entry.start)
    while left and (piece := file.read(min(left, PIECE))):
        crc, left = zlib.crc32(piece, crc), left - len(piece)
    return crc


def read_comment(path: Path) -> bytes:
    """Return the comment of an archive; empty if there is none, or the file is no archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.comment
    except (zipfile.BadZipFile, OSError, struct.error, NotImplementedError, UnicodeDecodeError):
        return b""


def write_comment(path: Path, comment: bytes) -> bool:
    """Give an archive another comment.

    Parameters
    ----------
    path
        The file.
    comment
        The comment, up to 65,535 bytes.

    Returns
    -------
    bool
        False if the file does not end as archives do; then it is left as it is.
    """
    before = read_comment(path)
    with path.open("r+b") as file:
        place = file.seek(0, 2) - len(before) - END.size
        if place < 0:
            return False
        file.seek(place)
        *fields, length = END.unpack(file.read(END.size))
        if fields[0] != b"PK\x05\x06" or length != len(before):
            return False
        file.seek(place)
        file.write(END.pack(*fields, len(comment)) + comment)
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
    pieces = _pieces(source, storages)
    if pieces is None:
        return False
    shutil.copyfile(source, path)
    with path.open("r+b") as file:
        for entry, storage in pieces:
            _replace(file, entry, storage)
    return write_comment(path, comment)


def _pieces(source: Path, storages: Sequence[torch.UntypedStorage]) -> list[tuple[Entry, torch.UntypedStorage]] | None:
    """Pair the numbered entries of an archive with the memory they were read into."""
    every = entries(source)
    numbered = {int(found[1]): entry for entry in every if (found := re.fullmatch(r"data/(\d+)", entry.name))}
    data = [numbered[number] for number in sorted(numbered) if numbered[number].size]
    full = [storage for storage in storages if storage.nbytes()]  # empty ones are read again each time
    if not data or [entry.size for entry in data] != [storage.nbytes() for storage in full]:
        return None
    order = next((entry for entry in every if entry.name == "byteorder"), None)
    with source.open("rb") as file:
        if order is not None and _read(file, order) != sys.byteorder.encode():
            return None
    return list(zip(data, full, strict=True)) if all(entry.plain for entry in data) else None


def _read(file: BinaryIO, entry: Entry) -> bytes:
    file.seek(entry.start)
    return file.read(entry.size)


def _replace(file: BinaryIO, entry: Entry, storage: torch.UntypedStorage) -> None:
    """Write new bytes, if they are new, and their CRC-32, if the old one was right."""
    new = tensor_bytes(torch.empty(0, dtype=torch.uint8).set_(storage))
    old = _read(file, entry)
    if new == old:
        return
    file.seek(entry.start)
    file.write(new)
    for place in entry.crc_places if zlib.crc32(old) == entry.crc else ():
        file.seek(place)
        file.write(zlib.crc32(new).to_bytes(4, "little"))

"""Files built by hand, byte by byte: what no library writes, and what a reader must survive."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))
"""


def net() -> torch.nn.Module:
    names: dict[str, Any] = {}
    exec(NET, names)
    torch.manual_seed(0)
    return names["build"]()


class Call:
    """Pickled as the call of a function."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.parts = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.parts


class Stored:
    """Pickled as a reference to a storage of an archive of torch.save."""

    def __init__(self, key: str, count: int, kind: Any = torch.FloatStorage) -> None:
        self.reference = ("storage", kind, key, "cpu", count)


class _Pickler(pickle.Pickler):
    def persistent_id(self, thing: Any) -> Any:
        return thing.reference if isinstance(thing, Stored) else None


def pickled(content: Any, protocol: int = 2) -> bytes:
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=protocol).dump(content)
    return buffer.getvalue()


def tensor(
    stored: Stored, size: Sequence[int], stride: Sequence[int], offset: int = 0, hooks: Any = None, grad: bool = False
) -> Call:
    """A tensor as torch.save writes it, with any sizes."""
    hooks = OrderedDict() if hooks is None else hooks
    return Call(torch._utils._rebuild_tensor_v2, stored, offset, tuple(size), tuple(stride), grad, hooks)


def archive(
    content: bytes | None, storages: Mapping[str, bytes] | None = None, packed: int = zipfile.ZIP_STORED, **more: bytes
) -> bytes:
    """An archive of torch.save around a pickle."""
    files = {"byteorder": b"little", "version": b"3\n", **more}
    files |= {f"data/{key}": value for key, value in (storages or {}).items()}
    if content is not None:
        files["data.pkl"] = content
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packed) as file:
        for name in sorted(files, key=lambda name: name != "data.pkl"):
            file.writestr(f"archive/{name}", files[name])
    return buffer.getvalue()


def legacy(content: bytes, keys: bytes = pickle.dumps([], 2), rest: bytes = b"") -> bytes:
    """A file as torch.save wrote it before it wrote archives, around a pickle."""
    system = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    magic = 0x1950A86A20F9469CFC6C
    return b"".join([pickle.dumps(magic, 2), pickle.dumps(1001, 2), pickle.dumps(system, 2), content, keys, rest])


def safetensors(header: Any, data: bytes = b"", size: int | None = None) -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(begin: int, end: int, shape: Sequence[Any] = (2,), dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(
    width: int, height: int, depth: int = 8, colour: int = 2, *, data: bytes | None = None, more: bytes = b""
) -> bytes:
    """A PNG with any header; without data, as many black lines as fit in a few bytes."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    data = zlib.compress(bytes(1000)) if data is None else data
    chunks = [png_chunk(b"IHDR", head), more, png_chunk(b"IDAT", data), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tiff(*entries: tuple[int, int, int, int], following: int = 0, data: bytes = b"") -> bytes:
    """A TIFF of one directory with entries ``(tag, type, count, value)``."""
    body = b"".join(struct.pack("<HHII", *each) for each in entries)
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", following) + data


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\0" + struct.pack("<H", len(text)) + text + data


def npz(packed: int = zipfile.ZIP_STORED, **arrays: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packed) as file:
        for name, content in arrays.items():
            file.writestr(f"{name}.npy", content)
    return buffer.getvalue()


def repeated(unit: bytes, times: int, head: bytes = b"") -> tuple[bytes, int, int]:
    """A deflated stream of a head and very many units, with its checksum and length, made without unpacking it."""

    def block(content: bytes) -> bytes:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return packer.compress(content) + packer.flush(zlib.Z_FULL_FLUSH)

    checksum = zlib.crc32(head)
    for _ in range(times):
        checksum = zlib.crc32(unit, checksum)
    return block(head) + block(unit) * times + b"\3\0", checksum, len(head) + len(unit) * times


def bomb(**members: tuple[bytes, int, int]) -> bytes:
    """An archive of members as `repeated` makes them; two underscores stand for a slash, and one for a dot."""
    local, central = b"", b""
    for name, (packed, checksum, size) in members.items():
        path = name.replace("__", "/").replace("_", ".").encode()
        both = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 0x21, checksum, len(packed), size, len(path), 0)
        central += b"PK\1\2\x14\0" + both + struct.pack("<HHHII", 0, 0, 0, 0, len(local)) + path
        local += b"PK\3\4" + both + path + packed
    end = struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(central), len(local), 0)
    return local + central + b"PK\5\6" + end


def saved(function: Any, *arguments: Any, **settings: Any) -> bytes:
    """The bytes that a function writes into a file."""
    buffer = io.BytesIO()
    function(*arguments, buffer, **settings)
    return buffer.getvalue()


def samples(n: int = 12) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    return {"x": generator.normal(0, 1, (n, 3, 8, 8)).astype(np.float32), "y": np.arange(n) % 3}


def flipped(content: bytes, place: int, bit: int = 0x40) -> bytes:
    """The content with some bits of one byte turned."""
    place %= len(content)
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]

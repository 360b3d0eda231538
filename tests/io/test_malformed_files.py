"""Damaged and hostile files: one line each that names the file, within 5 seconds and 1 GiB, and nothing written."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save, save_file

from tests import hostile, tiny
from tests.children import Case, Outcome, run_cases
from tests.hostile import (
    Call,
    Stored,
    archive,
    bomb,
    entry,
    flipped,
    legacy,
    npy,
    npz,
    pickled,
    png,
    png_chunk,
    repeated,
    safetensors,
    tensor,
    tiff,
)
from verifix import Correction, collect_moments, correct

SECONDS, BYTES = 5.0, 2**30

MEGABYTE = bytes(2**20)
RANDOM = np.random.default_rng(0).bytes(5000)
STATE = hostile.net().state_dict()
TENSORS = save(dict(STATE))
HEADER = 8 + int.from_bytes(TENSORS[:8], "little")
TORCH = hostile.saved(lambda buffer: torch.save(STATE, buffer))
OLD = hostile.saved(lambda buffer: torch.save(STATE, buffer, _use_new_zipfile_serialization=False))
PICKLE = zipfile.ZipFile(io.BytesIO(TORCH)).read("archive/data.pkl")
DEEP = b"[" * 200_000
JPEG = hostile.saved(lambda buffer: tiny.picture("red", 0, (40, 40)).save(buffer, "JPEG"))
GIF = hostile.saved(lambda buffer: tiny.picture("red", 0).save(buffer, "GIF"))
WEBP = hostile.saved(lambda buffer: tiny.picture("red", 0).save(buffer, "WEBP", lossless=True))
TIFF = hostile.saved(lambda buffer: tiny.picture("red", 0).save(buffer, "TIFF"))
PNG = tiny.png("red", 0, (40, 40))
NPZ = hostile.saved(lambda buffer: np.savez(buffer, **hostile.samples()))
LABELS = npy("{'descr': '<i8', 'fortran_order': False, 'shape': (4,), }", bytes(32))
TABLE = pa.table(
    {
        "image": [{"bytes": tiny.png("red", i), "path": None} for i in range(8)],
        "label": [i % 3 for i in range(8)],
    }
)
PARQUET = hostile.saved(lambda buffer: pq.write_table(TABLE, buffer))


def four(header: str) -> bytes:
    """An array file of inputs with a header of its own, and labels for four."""
    return npz(x=npy(header), y=LABELS)


def tar(*members: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def sized(content: bytes, size: bytes) -> bytes:
    """A tar file whose first member claims another size; its checksum is right."""
    head = bytearray(content[:512])
    head[124:136] = size
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head) + content[512:]


def parquet_of(**columns: object) -> bytes:
    return hostile.saved(lambda buffer: pq.write_table(pa.table(columns), buffer))


def weights(stored: Stored, size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """An archive whose one weight has any sizes and a storage of 48 bytes."""
    return archive(pickled(OrderedDict({"4.bias": tensor(stored, size, stride, offset)})), {"0": bytes(48)})


def overlapping(times: int) -> bytes:
    """An archive whose central directory names one large member many times."""
    content = archive(PICKLE, {"0": bytes(10**6)}, zipfile.ZIP_DEFLATED)
    end = content.rindex(b"PK\5\6")
    count, size, start = struct.unpack("<HII", content[end + 10 : end + 20])
    central = content[start : start + size] * times
    head = content[end : end + 8] + struct.pack("<HHII", count * times, count * times, len(central), start)
    return content[:start] + central + head + content[end + 20 :]


TAR = tar(("a.png", PNG), ("a.cls", b"1"), ("b.png", PNG), ("b.cls", b"2"))

CHECKPOINTS: dict[str, tuple[str, bytes]] = {
    # what it is: its name, its content
    "no bytes": ("c.safetensors", b""),
    "7 bytes": ("c.safetensors", TENSORS[:7]),
    "a length alone": ("c.safetensors", TENSORS[:8]),
    "half a header": ("c.safetensors", TENSORS[: HEADER // 2]),
    "no data": ("c.safetensors", TENSORS[:HEADER]),
    "half the data": ("c.safetensors", TENSORS[: (HEADER + len(TENSORS)) // 2]),
    "one byte short": ("c.safetensors", TENSORS[:-1]),
    "one byte more": ("c.safetensors", TENSORS + b"\0"),
    "length 2^63 - 1": ("c.safetensors", struct.pack("<Q", 2**63 - 1) + TENSORS[8:]),
    "length 2^64 - 1": ("c.safetensors", struct.pack("<Q", 2**64 - 1) + TENSORS[8:]),
    "length 2^40": ("c.safetensors", struct.pack("<Q", 2**40) + TENSORS[8:]),
    "length of the file": ("c.safetensors", struct.pack("<Q", len(TENSORS)) + TENSORS[8:]),
    "length one less": ("c.safetensors", struct.pack("<Q", HEADER - 9) + TENSORS[8:]),
    "bit flip in the length": ("c.safetensors", flipped(TENSORS, 1)),
    "bit flip in the brace": ("c.safetensors", flipped(TENSORS, 8)),
    "bit flip in a dtype": ("c.safetensors", flipped(TENSORS, TENSORS.index(b"F32"), 1)),
    "bit flip in an offset": ("c.safetensors", flipped(TENSORS, TENSORS.index(b"data_offsets") + 15, 2)),
    "overlapping offsets": ("c.safetensors", safetensors({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12))),
    "the same bytes twice": ("c.safetensors", safetensors({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8))),
    "a hole": ("c.safetensors", safetensors({"a": entry(0, 8), "b": entry(16, 24)}, bytes(24))),
    "offsets past the end": ("c.safetensors", safetensors({"a": entry(8, 16)}, bytes(8))),
    "offsets backwards": ("c.safetensors", safetensors({"a": entry(8, 0)}, bytes(8))),
    "negative offsets": ("c.safetensors", safetensors({"a": entry(-8, 0)}, bytes(8))),
    "huge offsets": ("c.safetensors", safetensors({"a": entry(2**64 - 8, 2**64 - 1)}, bytes(8))),
    "duplicate keys": (
        "c.safetensors",
        safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(entry(0, 8)).encode(),) * 2), bytes(8)),
    ),
    "unknown dtype": ("c.safetensors", safetensors({"a": entry(0, 8, dtype="F99")}, bytes(8))),
    "wider dtype": ("c.safetensors", safetensors({"a": entry(0, 8, dtype="F64")}, bytes(8))),
    "half a byte each": ("c.safetensors", safetensors({"a": entry(0, 1, dtype="F4")}, bytes(1))),
    "negative shape": ("c.safetensors", safetensors({"a": entry(0, 8, (-1, -2))}, bytes(8))),
    "shape overflows": ("c.safetensors", safetensors({"a": entry(0, 0, (2**33, 2**31))})),
    "shape of nothing times much": ("c.safetensors", safetensors({"a": entry(0, 0, (0, 2**63))})),
    "shape of fractions": ("c.safetensors", safetensors({"a": entry(0, 8, (2.0,))}, bytes(8))),
    "deep header": ("c.safetensors", safetensors(b'{"a":' + DEEP)),
    "header of a list": ("c.safetensors", safetensors(b"[]")),
    "header not utf-8": ("c.safetensors", safetensors(b'{"\xff":1}')),
    "metadata of numbers": ("c.safetensors", safetensors({"__metadata__": {"a": 1}, "a": entry(0, 8)}, bytes(8))),
    "only metadata": ("c.safetensors", safetensors({"__metadata__": {"a": "1"}})),
    "header of spaces": ("c.safetensors", safetensors(b" " * 1000)),
    "NULs": ("c.safetensors", bytes(10_000)),
    "random bytes": ("c.safetensors", RANDOM),
    "pt under another name": ("c.safetensors", TORCH),
    "keys of NULs": ("c.safetensors", safetensors({"\0" * 5000: entry(0, 8)}, bytes(8))),
    "pt: no bytes": ("c.pt", b""),
    "pt: one byte": ("c.pt", b"\x80"),
    "pt: first quarter": ("c.pt", TORCH[: len(TORCH) // 4]),
    "pt: half": ("c.pt", TORCH[: len(TORCH) // 2]),
    "pt: one byte short": ("c.pt", TORCH[:-1]),
    "pt: without its beginning": ("c.pt", TORCH[1000:]),
    "pt: flip in the directory": ("c.pt", flipped(TORCH, TORCH.rindex(b"PK\1\2"))),
    "pt: flip in the end": ("c.pt", flipped(TORCH, TORCH.rindex(b"PK\5\6"))),
    "pt: flip in the pickle": ("c.pt", flipped(TORCH, TORCH.index(PICKLE) + 2)),
    "pt: NULs": ("c.pt", bytes(10_000)),
    "pt: random bytes": ("c.pt", RANDOM),
    "pt: gzip": ("c.pt", gzip.compress(TORCH)),
    "pt: tar": ("c.pt", tar(("sys_info", pickle.dumps({})), ("pickle", PICKLE), ("storages", b""))),
    "pt: safetensors": ("c.pt", TENSORS),
    "pt: no pickle": ("c.pt", archive(None)),
    "pt: empty pickle": ("c.pt", archive(b"")),
    "pt: half a pickle": ("c.pt", archive(PICKLE[: len(PICKLE) // 2])),
    "pt: no storages": ("c.pt", archive(PICKLE)),
    "pt: storage too short": ("c.pt", weights(Stored("0", 10**6), (10**6,), (1,))),
    "pt: storage of 2^60": ("c.pt", weights(Stored("0", 2**60), (3,), (1,))),
    "pt: negative storage": ("c.pt", weights(Stored("0", -12), (3,), (1,))),
    "pt: outside of the storage": ("c.pt", weights(Stored("0", 12), (10**5,), (1,))),
    "pt: stride out of it": ("c.pt", weights(Stored("0", 12), (3,), (10**9,))),
    "pt: negative stride": ("c.pt", weights(Stored("0", 12), (3,), (-1,))),
    "pt: negative size": ("c.pt", weights(Stored("0", 12), (-3,), (1,))),
    "pt: size overflows": ("c.pt", weights(Stored("0", 12), (2**40, 2**40), (2**40, 1))),
    "pt: offset past the end": ("c.pt", weights(Stored("0", 12), (3,), (1,), 10**9)),
    "pt: negative offset": ("c.pt", weights(Stored("0", 12), (3,), (1,), -5)),
    "pt: unlike size and stride": ("c.pt", weights(Stored("0", 12), (3, 4), (1,))),
    "pt: storage of no such key": ("c.pt", weights(Stored("../0", 12), (3,), (1,))),
    "pt: deep pickle": ("c.pt", archive(b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".")),
    "pt: memo that is not there": ("c.pt", archive(b"\x80\x02h\x07.")),
    "pt: string of 2 GiB": ("c.pt", archive(b"\x80\x02X\xff\xff\xff\x7f.")),
    "pt: number of 2 GiB": ("c.pt", archive(b"\x80\x02\x8b\xff\xff\xff\x7f.")),
    "pt: nothing on the stack": ("c.pt", archive(b"\x80\x02.")),
    "pt: unknown opcode": ("c.pt", archive(b"\x80\x02\xff.")),
    "pt: protocol 255": ("c.pt", archive(b"\x80\xff].")),
    "pt: packed 1 GiB": (
        "c.pt",
        bomb(archive__data_pkl=repeated(PICKLE, 1), archive__data__0=repeated(MEGABYTE, 1024)),
    ),
    "pt: packed pickle": ("c.pt", bomb(archive__data_pkl=repeated(b"N0" * 2**19, 1024, b"\x80\x02"))),
    "pt: one member many times": ("c.pt", overlapping(3000)),
    "pt: tensor of 2^40 by torch.zeros": ("c.pt", archive(pickled({"4.bias": Call(torch.zeros, 2**40)}))),
    "pt: bytearray of 2^40": ("c.pt", archive(pickled({"4.bias": Call(bytearray, 2**40)}))),
    "old pt: half": ("c.pt", OLD[: len(OLD) // 2]),
    "old pt: one byte short": ("c.pt", OLD[:-1]),
    "old pt: no storages": ("c.pt", OLD[: -4 * sum(v.numel() for v in STATE.values())]),
    "old pt: flip in the magic": ("c.pt", flipped(OLD, 5)),
    "old pt: only a head": ("c.pt", legacy(b"")),
    "old pt: storage of 2^40": (
        "c.pt",
        legacy(
            pickled({"a": tensor(Stored("0", 2**40), (2,), (1,))}), pickle.dumps(["0"], 2), struct.pack("<q", 2**40)
        ),
    ),
    "ckpt: random bytes": ("c.ckpt", RANDOM),
    "bin: html": ("c.bin", b"<!DOCTYPE html><title>404</title>"),
    "index: deep": ("c.safetensors.index.json", DEEP),
    "index: random": ("c.safetensors.index.json", RANDOM),
    "index: numbers too long": ("c.safetensors.index.json", b'{"weight_map": ' + b"9" * 100_000 + b"}"),
}

IMAGES: dict[str, bytes] = {
    "no bytes": b"",
    "random bytes": RANDOM,
    "NULs": bytes(3000),
    "text": b"not a picture at all",
    "html": b"<!DOCTYPE html><title>404</title>",
    "png: signature alone": PNG[:8],
    "png: half a head": PNG[:20],
    "png: half": PNG[: len(PNG) // 2],
    "png: without its end": PNG[:-60],
    "png: flip in the head": flipped(PNG, 19),
    "png: flip in the data": flipped(PNG, len(PNG) // 2),
    "png: 100,000 x 100,000": png(100_000, 100_000),
    "png: 12,000 x 12,000": png(12_000, 12_000),
    "png: 2^31 - 1 wide": png(2**31 - 1, 1),
    "png: 2^32 - 1 wide": png(2**32 - 1, 2**32 - 1),
    "png: 0 x 0": png(0, 0),
    "png: 7 bits": png(8, 8, 7),
    "png: colours of kind 5": png(8, 8, 8, 5),
    "png: no data": png(8, 8, data=b""),
    "png: data that is not packed": png(8, 8, data=b"nothing"),
    "png: text of 1 GiB": png(8, 8, more=png_chunk(b"zTXt", b"a\0\0\x78\x9c" + repeated(MEGABYTE, 1024)[0])),
    "png: profile of 1 GiB": png(8, 8, more=png_chunk(b"iCCP", b"a\0\0\x78\x9c" + repeated(MEGABYTE, 1024)[0])),
    "png: chunk of 2 GiB": PNG[:33] + struct.pack(">I", 2**31 - 1) + b"IDAT" + bytes(100),
    "png: negative chunk": PNG[:33] + struct.pack(">I", 2**32 - 1) + b"IDAT" + bytes(100),
    "jpeg: half": JPEG[: len(JPEG) // 2],
    "jpeg: head": JPEG[:4],
    "jpeg: 65,535 x 65,535": JPEG.replace(struct.pack(">HH", 40, 40), b"\xff\xff\xff\xff"),
    "jpeg: 0 x 0": JPEG.replace(struct.pack(">HH", 40, 40), bytes(4)),
    "jpeg: then random": JPEG[:30] + RANDOM,
    "gif: half": GIF[: len(GIF) // 2],
    "gif: head": GIF[:13],
    "gif: 65,535 x 65,535": GIF[:6] + b"\xff\xff\xff\xff" + GIF[10:13] + b"," + bytes(4) + b"\xff" * 4 + bytes(9),
    "gif: broken codes": GIF[:-100] + b"\xff" * 100,
    "tiff: half": TIFF[: len(TIFF) // 2],
    "tiff: head": TIFF[:8],
    "tiff: its directory is itself": tiff(following=8),
    "tiff: directory past the end": b"II*\0" + struct.pack("<I", 2**32 - 2),
    "tiff: values past the end": tiff((256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 9, 2**31), (273, 4, 1, 2**31)),
    "tiff: 2^32 - 1 strips": tiff((256, 4, 1, 8), (257, 4, 1, 8), (273, 4, 2**32 - 1, 8), (279, 4, 2**32 - 1, 8)),
    "tiff: 2^31 wide": tiff((256, 4, 1, 2**31), (257, 4, 1, 2**31), (258, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8)),
    "tiff: unknown packing": tiff((256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 999), (262, 3, 1, 1)),
    "webp: half": WEBP[: len(WEBP) // 2],
    "webp: head": WEBP[:12],
    "webp: no picture": b"RIFF" + struct.pack("<I", 2**32 - 1) + b"WEBPVP8X" + bytes(50),
    "bmp: 2^31 x 2^31": b"BM"
    + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 2**31 - 1, 2**31 - 1, 1, 24, *[0] * 6),
    "bmp: half a head": b"BM" + bytes(20),
    "ppm: 100,000 x 100,000": b"P6 100000 100000 255\n" + bytes(10),
    "ppm: endless number": b"P6 " + b"9" * 100_000 + b" 1 255\n",
    "ppm: words": b"P6 one two 255\n" + bytes(10),
    "ico: nothing in it": b"\0\0\1\0\xff\xff" + bytes(40),
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "safetensors": TENSORS,
}

DATA: dict[str, tuple[str, bytes]] = {
    "names of its own in every line": ("d.jsonl", b"\n".join(b'{"k%d": 1}' % i for i in range(20_000))),
    "20,000 columns": ("d.parquet", parquet_of(**{f"k{i}": [0.5, 0.5] for i in range(20_000)})),
    "npz: no bytes": ("d.npz", b""),
    "npz: half": ("d.npz", NPZ[: len(NPZ) // 2]),
    "npz: one byte short": ("d.npz", NPZ[:-1]),
    "npz: random bytes": ("d.npz", RANDOM),
    "npz: flip in the data": ("d.npz", flipped(NPZ, len(NPZ) // 2)),
    "npz: an array alone": ("d.npz", npy("{'descr': '<i8', 'fortran_order': False, 'shape': (4,), }", bytes(32))),
    "npz: 1 GiB of zeros": (
        "d.npz",
        bomb(
            x_npy=repeated(
                MEGABYTE, 1024, npy("{'descr': '|u1', 'fortran_order': False, 'shape': (4, 16384, 16384), }")
            ),
            y_npy=repeated(LABELS, 1),
        ),
    ),
    "npz: shape too large": ("d.npz", four("{'descr': '<f4', 'fortran_order': False, 'shape': (4, 1000000000), }")),
    "npz: shape overflows": ("d.npz", four("{'descr': '<f4', 'fortran_order': False, 'shape': (2**62, 2**62), }")),
    "npz: shape of 2^80": ("d.npz", four(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**80},), }}")),
    "npz: negative shape": ("d.npz", four("{'descr': '<f4', 'fortran_order': False, 'shape': (-4, 2), }")),
    "npz: unknown dtype": ("d.npz", four("{'descr': 'zzz', 'fortran_order': False, 'shape': (4,), }")),
    "npz: objects": ("d.npz", four("{'descr': '|O', 'fortran_order': False, 'shape': (4,), }")),
    "npz: header is code": ("d.npz", four("__import__('os').mkdir('executed')")),
    "npz: header is deep": ("d.npz", four("(" * 5000)),
    "npz: header is endless": ("d.npz", npz(x=npy("{'descr': '<f4', " + " " * 60000 + "}"), y=LABELS)),
    "csv: no bytes": ("d.csv", b""),
    "csv: NULs": ("d.csv", bytes(3000)),
    "csv: random bytes": ("d.csv", RANDOM),
    "csv: NUL in a name": ("d.csv", b"file_name,label\na\0.png,1\n"),
    "csv: field of 20 MB": ("d.csv", b"file_name,label\n" + b"a" * 20_000_000 + b",1\n"),
    "csv: label of 20 MB": ("d.csv", b"file_name,label\na.png," + b"a" * 20_000_000 + b"\n"),
    "csv: a million columns": ("d.csv", b"file_name,label," + b"a," * 10**6 + b"\n"),
    "csv: utf-16": ("d.csv", "file_name,label\na.png,1\n".encode("utf-16")),
    "csv: open quotation": ("d.csv", b'file_name,label\n"a.png,1\n' * 100),
    "csv: returns": ("d.csv", b"file_name,label\ra.png,1\r" * 3),
    "jsonl: deep": ("d.jsonl", DEEP),
    "jsonl: number too long": ("d.jsonl", b'{"file_name": "a.png", "label": ' + b"9" * 100_000 + b"}"),
    "jsonl: random bytes": ("d.jsonl", RANDOM),
    "jsonl: half": ("d.jsonl", b'{"file_name": "a.png", "lab'),
    "jsonl: half a letter": ("d.jsonl", b'{"file_name": "\\ud800.png", "label": 1}'),
    "parquet: no bytes": ("d.parquet", b""),
    "parquet: half": ("d.parquet", PARQUET[: len(PARQUET) // 2]),
    "parquet: one byte short": ("d.parquet", PARQUET[:-1]),
    "parquet: marks alone": ("d.parquet", b"PAR1PAR1"),
    "parquet: random between": ("d.parquet", b"PAR1" + RANDOM + b"PAR1"),
    "parquet: footer of 2 GiB": ("d.parquet", PARQUET[:-8] + struct.pack("<I", 2**31 - 1) + b"PAR1"),
    "parquet: flip in the footer": ("d.parquet", flipped(PARQUET, -8 - int.from_bytes(PARQUET[-8:-4], "little"))),
    "parquet: pages of NULs": ("d.parquet", PARQUET[:4] + bytes(len(PARQUET) - 1504) + PARQUET[-1500:]),
    "parquet: 20 million rows": (
        "d.parquet",
        parquet_of(text=pa.nulls(2 * 10**7, pa.string()), label=pa.nulls(2 * 10**7, pa.int8())),
    ),
    "tar: no bytes": ("d.tar", b""),
    "tar: half a head": ("d.tar", TAR[:300]),
    "tar: half": ("d.tar", TAR[:900]),
    "tar: random bytes": ("d.tar", RANDOM),
    "tar: NULs": ("d.tar", bytes(10240)),
    "tar: gzip": ("d.tar", gzip.compress(TAR)),
    "tar: flip in the head": ("d.tar", flipped(TAR, 130)),
    "tar: member of 2^60": ("d.tar", sized(TAR, b"\x80" + bytes(3) + struct.pack(">Q", 2**60))),
    "tar: negative member": ("d.tar", sized(TAR, b"\xff" * 4 + struct.pack(">q", -512))),
    "tar: member of no number": ("d.tar", sized(TAR, b"zzzzzzzzzzz\0")),
    "tar: label not utf-8": ("d.tar", tar(("a.png", PNG), ("a.cls", b"\xff\xfe"))),
    "tar: label is deep": ("d.tar", tar(("a.png", PNG), ("a.json", DEEP))),
}


def moments_file() -> bytes:
    data = hostile.samples()  # not those of the tests: nothing may be counted twice
    found = collect_moments(
        hostile.net().eval(), (torch.tensor(1 - data["x"]), torch.tensor(data["y"])), progress=False
    )
    found.save("m.safetensors")
    return Path("m.safetensors").read_bytes()


def correction_file() -> bytes:
    data = hostile.samples()
    found = correct(hostile.net().eval(), (torch.tensor(data["x"]), torch.tensor(data["y"])), alpha=9, progress=False)
    found.save("k.safetensors")
    return Path("k.safetensors").read_bytes()


def with_header(content: bytes, change: Callable[[dict, dict], object]) -> bytes:
    """A file of verifix whose header and own entry in it are changed."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    about = json.loads(header["__metadata__"]["verifix"])
    change(header, about)
    if "verifix" in header["__metadata__"] and header["__metadata__"]["verifix"] is not None:
        header["__metadata__"]["verifix"] = json.dumps(about)
    return safetensors(header, content[8 + size :])


def filled(content: bytes, value: float) -> bytes:
    """A file of verifix whose tensors, in float64, all hold one value."""
    size = 8 + int.from_bytes(content[:8], "little")
    return content[:size] + struct.pack("<d", value) * ((len(content) - size) // 8)


OWN: dict[str, Callable[[bytes], bytes]] = {
    # what is done to a file of moments, and to one of a correction
    "half": lambda content: content[: len(content) // 2],
    "one byte short": lambda content: content[:-1],
    "flip in its head": lambda content: flipped(content, 9),
    "of no kind": lambda content: with_header(content, lambda header, about: header.update(__metadata__={})),
    "of another format": lambda content: with_header(content, lambda header, about: about.update(format="verifix-0")),
    "of a list": lambda content: content.replace(b'"verifix":"{', b'"verifix":"[', 1),
    "deep": lambda content: safetensors({"__metadata__": {"verifix": "[" * 200_000}}),
    "layers of numbers": lambda content: with_header(content, lambda header, about: about.update(layers=[1, 2])),
    "layers of nothing": lambda content: with_header(content, lambda header, about: about.update(layers=[{}])),
    "layers are no list": lambda content: with_header(content, lambda header, about: about.update(layers=7)),
    "random": lambda content: RANDOM,
    "tensors of others": lambda content: save({"a": torch.ones(2)}, {"verifix": "{}"}),
    "digests of others": lambda content: with_header(
        content, lambda header, about: about.update(sha256={}, samples=["zz"])
    ),
}
MOMENTS: dict[str, Callable[[bytes], bytes]] = {
    **OWN,
    "NaN": lambda content: filled(content, float("nan")),
    "Inf": lambda content: filled(content, float("inf")),
    "no variance, below 0": lambda content: filled(content, -1.0),
    "of rows that are no number": lambda content: with_header(
        content, lambda header, about: [layer.update(n="many") for layer in about["layers"]]
    ),
    "of -5 rows": lambda content: with_header(
        content, lambda header, about: [layer.update(n=-5) for layer in about["layers"]]
    ),
    "of unlike shapes": lambda content: with_header(
        content,
        lambda header, about: [
            each.update(shape=[1, *each["shape"][:0:-1], 1][-len(each["shape"]) :])
            for name, each in header.items()
            if name.endswith("gram")
        ],
    ),
    "of other dtypes": lambda content: with_header(
        content, lambda header, about: [each.update(dtype="I64") for each in header.values() if "dtype" in each]
    ),
}

CONFIGS: dict[str, bytes] = {
    "random bytes": RANDOM,
    "NULs": bytes(100),
    "deep": DEEP,
    "a list": b"- 1\n- 2\n",
    "open": b"alpha: [1, 2\n",
    "nine times nine times nine": b"".join(
        b"%c: &%c [%b]\n" % (97 + i, 97 + i, b",".join([b"x" if i == 0 else b"*%c" % (96 + i)] * 9)) for i in range(9)
    )
    + b"include: *i\n",
    "itself": b"include: &a [*a]\n",
}


def put(folder: Path, name: str, content: bytes) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content)


def words(checkpoint: str = "good.safetensors", verified: str = "good.npz", *more: str) -> list[str]:
    ending = ".pt" if checkpoint.endswith((".pt", ".ckpt", ".bin")) else ".safetensors"
    out = "fixed" if checkpoint.endswith(".json") else f"fixed{ending}"
    fixed = [
        "--model",
        "py:net.py:build",
        "--verified-from",
        "unseen",
        "--alpha",
        "10",
        "--proof",
        "none",
        "--no-progress",
        "--no-check-inputs",  # the networks are not trained
    ]
    return ["correct", *fixed, "--checkpoint", checkpoint, "--verified", verified, "--out", out, *more]


WITH_MOMENTS = words("good.safetensors", "good.npz", "--moments", "m.safetensors")
LOAD = "tests.io.test_malformed_files:load"
FOLDERS = ("c.safetensors", "c.pt", "d.npz", "d.csv", "d.parquet", "d.tar", "m.safetensors")


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("malformed")


def cases(root: Path) -> list[tuple[Case, str]]:
    """Write every case into a folder of its own; with each goes the name that its error must give."""
    found: list[tuple[Case, str]] = []

    def add(
        name: str, file: str, content: bytes | None, argv: list[str], function: str = "verifix.cli.main:main"
    ) -> None:
        folder = root / f"{len(found):03d}"
        folder.mkdir()
        put(folder, "net.py", hostile.NET.encode())
        put(folder, "good.safetensors", TENSORS)
        put(folder, "good.npz", NPZ)
        if content is not None:
            put(folder, file, content)
        found.append((Case(name, str(folder), argv, function), file))

    for name, (file, content) in CHECKPOINTS.items():
        add(f"checkpoint {name}", file, content, words(file))
    for name, content in IMAGES.items():
        add(f"image {name}", "set/red/a.png", content, words("good.safetensors", "set", "--classes", "red,green,blue"))
    for name, (file, content) in DATA.items():
        add(f"data {name}", file, content, words("good.safetensors", file))
    moments, correction = moments_file(), correction_file()
    for name, change in MOMENTS.items():
        add(f"moments {name}", "m.safetensors", change(moments), WITH_MOMENTS)
    for name, change in OWN.items():
        add(f"correction {name}", "k.safetensors", change(correction), ["k.safetensors"], LOAD)
    for name, content in CONFIGS.items():
        add(f"config {name}", "c.yaml", content, ["correct", "--config", "c.yaml", *words()[1:]])
    for file in FOLDERS:
        argv = {"c": words(file), "d": words("good.safetensors", file), "m": WITH_MOMENTS}[file[0]]
        add(f"folder {file}", file, None, argv)
        (root / f"{len(found) - 1:03d}" / file).mkdir()
    return found


def load(argv: list[str]) -> int:
    """Read a correction file as the command line would."""
    from verifix import VerifixError
    from verifix.cli.main import _fail

    try:
        Correction.load(argv[0])
    except VerifixError as error:
        return _fail(str(error), error.exit_code)
    return 0


@pytest.fixture(scope="module")
def outcomes(root, asked_for, tmp_path_factory) -> dict[str, tuple[Outcome, str, Path]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("made"))
        every = [(case, file) for case, file in cases(root) if case.name in asked_for]
    before = {case.folder: sorted(Path(case.folder).rglob("*")) for case, _ in every}
    found = run_cases([case for case, _ in every])
    for case, _ in every:
        assert sorted(Path(case.folder).rglob("*")) == before[case.folder], case.name
    return {case.name: (found[case.name], file, Path(case.folder)) for case, file in every}


NAMES = [
    *(f"checkpoint {name}" for name in CHECKPOINTS),
    *(f"image {name}" for name in IMAGES),
    *(f"data {name}" for name in DATA),
    *(f"moments {name}" for name in MOMENTS),
    *(f"correction {name}" for name in OWN),
    *(f"config {name}" for name in CONFIGS),
    *(f"folder {name}" for name in FOLDERS),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_malformed_file_gets_one_line_that_names_it_soon_and_in_little_memory(name, outcomes):
    found, file, _ = outcomes[name]
    assert found.code in (2, 5), found
    assert found.out == ""
    assert found.err.startswith("verifix: error: ")
    assert found.err.count("\n") == 1
    assert len(found.err) < 1000
    assert "set VERIFIX_TRACEBACK" not in found.err
    assert file in found.err
    assert found.seconds <= SECONDS
    assert found.memory <= BYTES


def test_there_are_cases_enough():
    assert len(set(NAMES)) == len(NAMES) >= 160
    assert len(CHECKPOINTS) + len(IMAGES) >= 60


def test_the_same_files_whole_are_accepted(tmp_path):
    """What is malformed above works when it is whole, or refusing it would prove nothing."""
    put(tmp_path, "net.py", hostile.NET.encode())
    put(tmp_path, "c.pt", archive(PICKLE, {str(i): v.numpy().tobytes() for i, v in enumerate(STATE.values())}))
    put(tmp_path, "old.pt", OLD)
    put(tmp_path, "good.safetensors", TENSORS)
    put(tmp_path, "good.npz", NPZ)
    put(tmp_path, "d.parquet", PARQUET)
    put(tmp_path, "d.tar", TAR)
    for i, content in enumerate((PNG, JPEG, GIF, TIFF, WEBP)):
        for name in ("red", "blue"):
            put(tmp_path, f"set{i}/{name}/a.png", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        put(tmp_path, "m.safetensors", moments_file())
        put(tmp_path, "k.safetensors", correction_file())
    save_file(dict(STATE), tmp_path / "c.safetensors")
    given = {
        "pt": words("c.pt"),
        "old pt": words("old.pt"),
        "safetensors": words("c.safetensors"),
        "moments": WITH_MOMENTS,
        "parquet": words("good.safetensors", "d.parquet"),
        "tar": words("good.safetensors", "d.tar", "--no-check-labels"),
        **{
            f"image {i}": words("good.safetensors", f"set{i}", "--classes", "red,green,blue", "--no-check-labels")
            for i in range(5)
        },
    }
    every = [
        Case(name, str(tmp_path), [word.replace("fixed", name.replace(" ", "")) for word in argv])
        for name, argv in given.items()
    ]
    every.append(Case("correction", str(tmp_path), ["k.safetensors"], LOAD))
    for name, found in run_cases(every).items():
        assert found.code == 0, (name, found)

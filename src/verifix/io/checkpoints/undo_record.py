"""What a correction changes in the files of a checkpoint, by hash, so that it can be undone and proved undone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from verifix.correction import Record
from verifix.io.checkpoints.sharded import Folder
from verifix.io.checkpoints.weight_file import SUFFIXES, Part, digests, read_part, tensors_in
from verifix.model.tensors import tensor_digest
from verifix.storage.atomic import file_digest

FORMAT = "verifix-undo-1"


def change(
    parts: Mapping[str, Part],
    folder: Folder | None,
    targets: Mapping[str, Tensor],
    update: Mapping[str, Tensor],
    original: Mapping[str, Tensor],
) -> Record:
    """Copy new values into tensors of a checkpoint, and record what `verifix undo` needs.

    Parameters
    ----------
    parts
        Its files by name; the name of a single file is empty.
    folder
        The folder around them; None for a single file.
    targets
        The tensors by key.
    update
        New values by key; rounded to the tensor's dtype.
    original
        Values from before that are held elsewhere, in whatever dtype.

    Returns
    -------
    Record
        ``{"format", "files": {name: file}, "others": {name: SHA-256}, "left_out": [names]}``. Each file has ``sha256``
        and ``content_sha256`` from before, ``tensors`` (SHA-256 from before by place), ``changed`` (by place ``sha256``
        now and ``from``, where the correction file has the value from before, ``original/NAME`` or ``source/NAME``),
        and, if anything has changed, ``head``: its header or comment from before.
    """
    before = {name: digests(part.content) for name, part in parts.items()}
    dtypes = {targets[key].dtype for key in update}
    known = {tensor_digest(x.to(dtype)): f"original/{name}" for name, x in original.items() for dtype in dtypes}
    for key, value in update.items():
        targets[key].data.copy_(value)  # in place: tied entries, views and every container around them follow
    held: dict[str, Tensor] = {}
    files = {name: _file(part, before[name], known, held) for name, part in parts.items()}
    others = [] if folder is None else [name for name in folder.others if (folder.root / name).is_file()]
    about: dict[str, Any] = {
        "format": FORMAT,
        "files": files,
        "others": {name: file_digest(folder.root / name) for name in others} if folder else {},
        "left_out": list(folder.left_out) if folder else [],
    }
    return Record(about, held)


def _file(part: Part, before: Mapping[str, str], known: dict[str, str], held: dict[str, Tensor]) -> dict[str, Any]:
    """Describe a file whose tensors have been changed; values that nothing holds go from the file into `held`."""
    now = digests(part.content)
    changed = [place for place, digest in before.items() if now[place] != digest]
    lost = [place for place in changed if before[place] not in known]
    source = tensors_in(read_part(part.path).content) if lost else {}
    for place in lost:
        if before[place] not in known:
            known[before[place]] = f"source/{len(held)}"
            held[str(len(held))] = source[place]
    return {
        "sha256": part.sha256,
        "content_sha256": content_digest(before),
        "tensors": {place: before[place] for place in tensors_in(part.content)},
        "changed": {place: {"sha256": now[place], "from": known[before[place]]} for place in changed},
        **({"head": part.head.decode("latin-1")} if changed else {}),
    }


def content_digest(content: Mapping[str, str]) -> str:
    """Return the SHA-256 (hexadecimal) of everything in a content, as `digests` returns it."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def correction_path(checkpoint: str | Path) -> Path:
    """Return where the correction file of a corrected checkpoint lies: beside it, also if it is a folder."""
    path = Path(checkpoint)
    if path.name in ("", ".."):
        path = path.resolve()
    suffix = max((end for end in SUFFIXES if path.name.endswith(end)), key=len, default="")
    return path.with_name(f"{path.name.removesuffix(suffix)}.correction.safetensors")

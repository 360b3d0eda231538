"""What a correction changes in the files of a checkpoint, told by hash, so that it can be undone and proved undone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from verifix.correction import Record
from verifix.io.checkpoints.sharded import Folder
from verifix.io.checkpoints.weight_file import Part, digests, tensors_in
from verifix.model.tensors import tensor_digest
from verifix.storage.atomic import file_digest

FORMAT = "verifix-undo-1"

Digests = Mapping[str, str]
"""What is at each place of a content: the SHA-256 of a tensor, or text."""


@dataclass(frozen=True)
class Changes:
    """What was changed in the tensors that were read.

    Attributes
    ----------
    before
        For each file, everything in it as it was.
    places
        For each file that has changed, the changed places: the SHA-256 now, and where the value from before is held:
        ``original/NAME`` or ``source/NAME`` in the correction file.
    tensors
        Values from before that are held as ``source/NAME``.
    """

    before: Mapping[str, Digests]
    places: Mapping[str, Mapping[str, Mapping[str, str]]]
    tensors: dict[str, Tensor]


def change(
    parts: Sequence[Part], targets: Mapping[str, Tensor], update: Mapping[str, Tensor], original: Mapping[str, Tensor]
) -> Changes:
    """Copy new values into tensors of a checkpoint, and note what that does to everything in it.

    Parameters
    ----------
    parts
        Its files.
    targets
        The tensors by key.
    update
        New values by key; rounded to the tensor's dtype.
    original
        Values from before that are held elsewhere, in whatever dtype.

    Returns
    -------
    Changes
        What has changed.
    """
    before = {part.path.name: digests(part.content) for part in parts}
    spans = [_span(tensor) for tensor in targets.values()]
    touched = {
        (part.path.name, place): tensor
        for part in parts
        for place, tensor in tensors_in(part.content).items()
        if _meets(_span(tensor), spans)
    }
    dtypes = {tensor.dtype for tensor in touched.values()}
    known = {tensor_digest(x.to(dtype)): f"original/{name}" for name, x in original.items() for dtype in dtypes}
    was = {at: tensor.detach().clone() for at, tensor in touched.items() if before[at[0]][at[1]] not in known}
    for key, value in update.items():
        targets[key].data.copy_(value)  # in place: tied entries and every container around them follow
    held: dict[str, Tensor] = {}
    places: dict[str, dict[str, dict[str, str]]] = {}
    for at, tensor in touched.items():
        (name, place), now = at, tensor_digest(tensor)
        digest = before[name][place]
        if now != digest:
            if digest not in known:
                known[digest] = f"source/{len(held)}"
                held[str(len(held))] = was[at]
            places.setdefault(name, {})[place] = {"sha256": now, "from": known[digest]}
    return Changes(before, places, held)


def _span(tensor: Tensor) -> tuple[int, int]:
    """Return where a tensor begins and ends in memory."""
    if not tensor.numel():
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()


def _meets(span: tuple[int, int], others: Iterable[tuple[int, int]]) -> bool:
    return any(span[0] < end and start < span[1] for start, end in others)


def describe(parts: Sequence[Part], folder: Folder | None, changes: Changes) -> Record:
    """Return what `verifix undo` needs beside the values from before.

    Parameters
    ----------
    parts
        The files of the checkpoint.
    folder
        The folder around them; None for a single file.
    changes
        What has changed in them.

    Returns
    -------
    Record
        ``{"format", "files": {name: file}, "others": {name: SHA-256}, "left_out": [names]}``. The name of a single file
        is empty. Each file has ``sha256`` and ``content_sha256`` from before, ``tensors`` (SHA-256 from before by
        place), ``changed`` (see `Changes`), and, if any, ``head``: its header or comment from before.
    """
    files = {}
    for part in parts:
        before, changed = changes.before[part.path.name], changes.places.get(part.path.name, {})
        files["" if folder is None else part.path.name] = {
            "sha256": part.sha256,
            "content_sha256": content_digest(before),
            "tensors": {place: before[place] for place in tensors_in(part.content)},
            "changed": changed,
            **({"head": part.head.decode("latin-1")} if changed else {}),
        }
    about: dict[str, Any] = {"format": FORMAT, "files": files, "others": {}, "left_out": []}
    if folder is not None:
        others = [name for name in folder.others if (folder.root / name).is_file()]
        about["others"] = {name: file_digest(folder.root / name) for name in others}
        about["left_out"] = list(folder.left_out)
    return Record(about, changes.tensors)


def content_digest(content: Digests) -> str:
    """Return the SHA-256 (hexadecimal) of everything in a content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

"""Tensors in nests, their memory, their bytes and their digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from verifix.errors import CheckpointError, UsageError, one_line


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter; the CPU for a model without any."""
    return next(model.parameters(), torch.empty(0, device="cpu")).device


def tensors_in(values: Any) -> list[Tensor]:
    """Return all tensors in a nest of containers, in order."""
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def storage_of(tensor: Tensor) -> int:
    """Return what identifies a plain tensor's memory, its address if there is one; 0 for others (sparse, nested)."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return 0
    try:
        storage = tensor.untyped_storage()
        return storage.data_ptr() or (storage._cdata if storage.nbytes() else 0)  # on the meta device there is none
    except (RuntimeError, NotImplementedError):
        return 0


def tensor_bytes(x: Tensor) -> bytes:
    """Return a tensor's values as bytes, the same wherever it lies in memory."""
    x = x if x.layout is torch.strided else x.to_dense()
    return x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def model_digest(model: nn.Module) -> str:
    """Return one SHA-256 (hexadecimal) over the names and values of all parameters and buffers."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if isinstance(tensor, Tensor):
            total.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            total.update(tensor_bytes(tensor))
    return total.hexdigest()


def device_named(name: str) -> torch.device:
    """Return a device that is there.

    Parameters
    ----------
    name
        Such as "cpu" or "cuda:0".

    Returns
    -------
    torch.device
        The device.

    Raises
    ------
    UsageError
        If torch does not know it, or it is not there.
    """
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        line = one_line(error, 200)
        raise UsageError(f"device {name!r} is not available ({line}); use 'cpu', 'cuda' or 'auto'") from None
    return device


def tensor_digest(tensor: Tensor) -> str:
    """Return the SHA-256 (hexadecimal) of a tensor's dtype, shape and values."""
    return tensor_sha256(tensor).hex()


def tensor_sha256(tensor: Tensor) -> bytes:
    """Return the SHA-256 of a tensor's dtype, shape and values."""
    head = f"{tensor.dtype}{tuple(tensor.shape)}".encode()
    return hashlib.sha256(head + tensor_bytes(tensor)).digest()


def sealed(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> dict[str, str]:
    """Return the metadata of a file of tensors: what it is, the SHA-256 of each tensor, and one over all of that.

    Parameters
    ----------
    tensors
        The content of the file.
    about
        Plain data; ``format`` says what kind of file it is.

    Returns
    -------
    dict
        One entry, in JSON. The same content gives the same text.
    """
    content = {**about, "sha256": {name: tensor_digest(tensor) for name, tensor in tensors.items()}}
    content = json.loads(json.dumps(content))  # as it will be read: keys are texts, tuples are lists
    return {"verifix": json.dumps({**content, "seal": _seal(content)}, sort_keys=True)}


def unsealed(
    path: object, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], kind: str, form: str, written_by: str = ""
) -> dict[str, Any]:
    """Read what `sealed` wrote, and compare tensors and text with their SHA-256.

    Parameters
    ----------
    path
        The file, for messages.
    tensors, metadata
        Its content.
    kind
        What it must be, in words.
    form
        The format that it must have.
    written_by
        The flag that writes such a file, for messages; empty for none.

    Returns
    -------
    dict
        The data.

    Raises
    ------
    CheckpointError
        If the file is something else, or damaged.
    """
    try:
        about: dict[str, Any] = json.loads(metadata["verifix"])
        if about["format"] != form:
            raise KeyError(about["format"])
        seal = about.pop("seal")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        remedy = f"; write one with {written_by}" if written_by else ""
        raise CheckpointError(f"{path} is not a verifix {kind} file ({error!r}){remedy}") from None
    digests = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
    if seal != _seal(about) or about.get("sha256") != digests:
        raise CheckpointError(f"{path} is damaged: its content does not match its SHA-256; restore it from a copy")
    return about


def _seal(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

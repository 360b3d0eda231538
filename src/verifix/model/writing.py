"""Write new values into tensors that somebody else owns: all of them, or none."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from verifix.model.tensors import storage_of, tensor_digest

MAPS = Path("/proc/self/maps")
"""Where Linux tells what may be done with each part of a process's memory; other systems do not tell."""

OWN_MEMORY = "give it memory of its own, with x.data = x.data.clone()"


def obstacles(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Say what cannot be written to, and what to do, without writing anything.

    Parameters
    ----------
    tensors
        By name.

    Returns
    -------
    dict
        The names of those that cannot be, with the reason.
    """
    protected = _protected()
    found = {name: _obstacle(tensor, protected) for name, tensor in tensors.items()}
    return {name: reason for name, reason in found.items() if reason}


def _obstacle(x: Tensor, protected: list[tuple[int, int]]) -> str:
    if x.is_meta:
        return "is on the meta device and has no values; load the weights first"
    if x.layout is not torch.strided or x.is_nested or x.is_quantized:
        return "is sparse, nested or quantised; give the model in its plain form"
    reach = 1 + sum((size - 1) * step for size, step in zip(x.shape, x.stride(), strict=True))
    if x.numel() > reach:
        return f"is expanded, several entries in one place of memory; {OWN_MEMORY}"
    if x.device.type == "cpu" and any(start <= storage_of(x) < end for start, end in protected):
        return f"lies in memory that is read-only; {OWN_MEMORY}"
    return ""


def _protected() -> list[tuple[int, int]]:
    """Return the parts of memory where writing would end the process, such as files that are mapped for reading."""
    with suppress(OSError, ValueError):
        lines = [line.split(maxsplit=2)[:2] for line in MAPS.read_text(errors="replace").splitlines()]
        spans = [span.split("-") for span, allowed in lines if "w" not in allowed]
        return [(int(start, 16), int(end, 16)) for start, end in spans]
    return []


def write_all(tensors: Mapping[str, Tensor], new: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> list[str]:
    """Write new values, read them back, and write the old ones again if not all of them are there.

    Parameters
    ----------
    tensors
        What to write into, by name.
    new, before
        New values, and those that the tensors have, by name.

    Returns
    -------
    list of str
        Names of tensors that could not hold their value: then all have the old ones. Empty if all went well.
    """
    try:
        for name, value in new.items():
            _write(tensors[name], value)
        wrong = [name for name, value in new.items() if tensor_digest(tensors[name]) != tensor_digest(value)]
    except BaseException:
        _restore(tensors, before)
        raise
    if wrong:
        _restore(tensors, before)
    return wrong


def _restore(tensors: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> None:
    for name, value in before.items():
        with suppress(Exception):  # what cannot be written has not been changed
            _write(tensors[name], value)


def _write(tensor: Tensor, value: Tensor) -> None:
    with torch.inference_mode(tensor.is_inference()):  # such tensors are written in no other mode
        tensor.data.copy_(value)

"""Files of weights: read without running code, written with the same content, and compared."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from verifix.correction import tensor_digest
from verifix.errors import CheckpointError, UsageError
from verifix.files import fill_safetensors, read_safetensors, read_torch
from verifix.io.fit import listed
from verifix.io.folders import INDEX
from verifix.io.state import Found, find_states

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
        The metadata of a safetensors file.
    """

    path: Path
    content: Any
    found: Mapping[str, Found]
    metadata: Mapping[str, str]

    @property
    def is_safetensors(self) -> bool:
        """Whether the file is a safetensors file."""
        return self.path.suffix == ".safetensors"

    def write(self, path: Path, provenance: Mapping[str, Any]) -> None:
        """Write the content as it is now, read it back, and compare.

        Parameters
        ----------
        path
            Where to.
        provenance
            Plain data for the metadata of a safetensors file, under ``verifix``.

        Raises
        ------
        CheckpointError
            If it does not read back as it was written.
        """
        if self.is_safetensors:
            fill_safetensors(path, self.content, {**self.metadata, "verifix": json.dumps(provenance, sort_keys=True)})
        else:
            torch.save(self.content, path)
        again = read_safetensors(path)[0] if self.is_safetensors else read_torch(path)
        if dict(_leaves(again)) != dict(_leaves(self.content)):
            raise CheckpointError(f"{path} does not read back as it was written; check the disk")


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
            f"{path} is not a checkpoint by its name; give a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file, an "
            f"index ({INDEX}), or a folder that save_pretrained has written"
        )
    content, metadata = read_safetensors(path) if path.suffix == ".safetensors" else (read_torch(path), {})
    found = find_states(content)
    if not found:
        keys = listed([str(key) for key in content]) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"{path} holds no state dict (it holds {keys or 'nothing'}); save model.state_dict() in it"
        )
    return Part(path, content, found, metadata)


def _leaves(content: object, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield everything in a content: tensors by their digest, the rest as text."""
    if isinstance(content, argparse.Namespace):
        content = vars(content)
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _leaves(value, f"{place}/{key!r}")
    elif isinstance(content, (list, tuple)):
        for i, value in enumerate(content):
            yield from _leaves(value, f"{place}/{i}")
    elif isinstance(content, Tensor) and content.layout is torch.strided and not content.is_quantized:
        yield place, tensor_digest(content)
    else:
        yield place, repr(sorted(content, key=repr) if isinstance(content, (set, frozenset)) else content)

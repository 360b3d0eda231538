"""Checkpoints in, checkpoints out: same format, keys, nesting, dtypes and ties, and nothing else touched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from verifix.correction import Correction, tensor_digest
from verifix.errors import CheckpointError, UsageError, VerifixError
from verifix.files import check_output, read_safetensors, read_torch, write_atomically, write_safetensors

NESTS = ("state_dict", "model_state_dict", "model", "net", "weights")
"""Keys under which a state dict is looked for, in this order."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint as it was read.

    Attributes
    ----------
    path
        The file.
    content
        All of it: for a ``.pt`` file whatever it holds, for safetensors the tensors.
    state
        The state dict in it; its tensors are the very ones in `content`.
    metadata
        The metadata of a safetensors file.
    """

    path: Path
    content: Any
    state: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @property
    def is_safetensors(self) -> bool:
        """Whether the file is a safetensors file."""
        return self.path.suffix == ".safetensors"

    def load_into(self, model: nn.Module) -> None:
        """Load the weights strictly.

        Parameters
        ----------
        model
            The model to fill.

        Raises
        ------
        CheckpointError
            If keys or shapes do not fit; names the first few.
        """
        wanted = model.state_dict()
        missing = [key for key in wanted if key not in self.state]
        unexpected = [key for key in self.state if key not in wanted]
        if missing or unexpected:
            raise CheckpointError(
                f"{self.path} does not fit the model: {_few('missing', missing)}; {_few('unexpected', unexpected)}; "
                "give the checkpoint of this model, or the model of this checkpoint"
            )
        wrong = [
            f"{key} {list(self.state[key].shape)} instead of {list(value.shape)}"
            for key, value in wanted.items()
            if self.state[key].shape != value.shape
        ]
        if wrong:
            raise CheckpointError(
                f"{self.path} does not fit the model: {_few('shapes', wrong)}; check the number of classes"
            )
        model.load_state_dict(dict(self.state), assign=False)

    def refuse_corrected(self) -> None:
        """Refuse a checkpoint that has been corrected already.

        Raises
        ------
        CheckpointError
            If its metadata, or a correction file beside it, says so.
        """
        if "verifix" in self.metadata or self._matches_correction_beside():
            raise CheckpointError(
                f"{self.path} has been corrected already, and correcting twice is not correcting once; "
                "give the original checkpoint"
            )

    def _matches_correction_beside(self) -> bool:
        beside = correction_path(self.path)
        if not beside.is_file():
            return False
        try:
            after = Correction.load(beside).corrected
        except VerifixError:
            return False
        return any(k in self.state and tensor_digest(self.state[k]) == tensor_digest(v) for k, v in after.items())

    def check_out(self, out: str | Path, *, force: bool) -> Path:
        """Check where the corrected checkpoint is to go, before any work is done.

        Parameters
        ----------
        out
            The path.
        force
            Whether a file there may be replaced.

        Returns
        -------
        Path
            The path.

        Raises
        ------
        UsageError
            If it is the input itself, has another format's suffix, or exists.
        """
        out = Path(out)
        if out.exists() and out.samefile(self.path):
            raise UsageError(f"{out} is the input checkpoint; it is never overwritten, so choose another name")
        if (out.suffix == ".safetensors") != self.is_safetensors:
            raise UsageError(f"{out} and {self.path} differ in format; end --out in {self.path.suffix}")
        check_output(correction_path(out), force=force)
        return check_output(out, force=force)

    def save(
        self, out: str | Path, update: Mapping[str, Tensor], provenance: Mapping[str, Any], *, force: bool
    ) -> Path:
        """Write a copy with new values for some tensors, read it back, and compare.

        Parameters
        ----------
        out
            Where to.
        update
            New values by key; rounded to the dtype that the checkpoint has.
        provenance
            Plain data for the metadata of a safetensors file, under ``verifix``.
        force
            Whether a file there may be replaced.

        Returns
        -------
        Path
            The path.

        Raises
        ------
        CheckpointError
            If the file does not read back as it was written.
        """
        for key, value in update.items():
            self.state[key].data.copy_(value)  # in place: tied entries and every container around them follow
        if self.is_safetensors:
            about = {**self.metadata, "verifix": json.dumps(provenance, sort_keys=True)}
            out = write_safetensors(out, dict(self.state), about, force=force)
        else:
            out = write_atomically(out, lambda path: torch.save(self.content, path), force=force)
        again = read_checkpoint(out)
        if {k: tensor_digest(v) for k, v in again.state.items()} != {
            k: tensor_digest(v) for k, v in self.state.items()
        }:
            raise CheckpointError(
                f"{out} does not read back as it was written; check the disk and do not use this file"
            )
        return out


def correction_path(checkpoint: str | Path) -> Path:
    """Return where the correction file of a corrected checkpoint lies: beside it."""
    path = Path(checkpoint)
    return path.with_name(f"{path.stem}.correction.safetensors")


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint without running any code in it.

    Parameters
    ----------
    path
        A ``.safetensors``, ``.pt`` or ``.pth`` file.

    Returns
    -------
    Checkpoint
        Its content.

    Raises
    ------
    UsageError
        If there is no such file, or its suffix is another.
    CheckpointError
        If it is damaged, or no state dict is in it.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        tensors, metadata = read_safetensors(path)
        return Checkpoint(path, tensors, tensors, metadata)
    if path.suffix not in (".pt", ".pth"):
        raise UsageError(f"{path} is not a checkpoint by its name; give a .safetensors, .pt or .pth file")
    content = read_torch(path)
    return Checkpoint(path, content, _state_in(content, path), {})


def _state_in(content: object, path: Path) -> Mapping[str, Tensor]:
    if _is_state(content):
        return content  # type: ignore[return-value]
    if isinstance(content, Mapping):
        for nest in NESTS:
            if _is_state(content.get(nest)):
                return content[nest]  # type: ignore[no-any-return]
    keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
    raise CheckpointError(
        f"{path} holds no state dict (it holds {keys}); save model.state_dict(), or under {' or '.join(NESTS[:3])}"
    )


def _is_state(value: object) -> bool:
    return isinstance(value, Mapping) and len(value) > 0 and all(isinstance(v, Tensor) for v in value.values())


def _few(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}" + (f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else "")

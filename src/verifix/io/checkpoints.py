"""Checkpoints in, checkpoints out: same format, keys, nesting, dtypes and ties, and nothing else touched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from verifix.borrow import tied_names
from verifix.correction import Correction, tensor_digest
from verifix.errors import CheckpointError, UsageError, VerifixError
from verifix.files import read_safetensors, read_torch, write_atomically, write_safetensors

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
        wanted = {key: value for key, value in model.state_dict().items() if isinstance(value, Tensor)}
        state = self._with_tied(model)
        missing = [key for key in wanted if key not in state]
        unexpected = [key for key in state if key not in wanted]
        if missing or unexpected:
            prefixed = all(key.startswith("module.") for key in state)
            hint = "strip the prefix 'module.' of DataParallel from its keys, or " if prefixed else ""
            raise CheckpointError(
                f"{self.path} does not fit the model: {_few('missing', missing)}; {_few('unexpected', unexpected)}; "
                f"{hint}give the checkpoint of this model, or the model of this checkpoint"
            )
        wrong = [
            f"{key} {list(state[key].shape)} instead of {list(value.shape)}"
            for key, value in wanted.items()
            if state[key].shape != value.shape
        ]
        if wrong:
            raise CheckpointError(
                f"{self.path} does not fit the model: {_few('shapes', wrong)}; check the number of classes"
            )
        model.load_state_dict(state, strict=False)

    def _with_tied(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the state with every name of a tied weight, of which a file may hold one or all."""
        state = dict(self.state)
        for names in tied_names(model).values():
            held = [name for name in names if name in state]
            for name in held[1:]:
                if tensor_digest(state[name]) != tensor_digest(state[held[0]]):
                    raise CheckpointError(
                        f"{self.path} has different values for {held[0]!r} and {name!r}, which are one weight in the "
                        "model; give the checkpoint of this model"
                    )
            state |= {name: state[held[0]] for name in names if held}
        return state

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
        return any(
            k in self.state and tensor_digest(self.state[k].to(v.dtype)) == tensor_digest(v) for k, v in after.items()
        )

    def check_format(self, out: Path) -> None:
        """Check that a corrected checkpoint's name fits the format, which is that of the original.

        Parameters
        ----------
        out
            The name.

        Raises
        ------
        UsageError
            If it does not.
        """
        allowed = (".safetensors",) if self.is_safetensors else (".pt", ".pth")
        if out.suffix not in allowed:
            raise UsageError(f"{out} and {self.path} differ in format; end --out in {' or '.join(allowed)}")

    def dtypes(self, model: nn.Module) -> dict[str, torch.dtype]:
        """Return the dtype in which this checkpoint holds each parameter of the model."""
        state = self._with_tied(model)
        return {name: state[name].dtype for name, _ in model.named_parameters()}

    def spread(self, model: nn.Module, update: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return new values of parameters by the keys of this checkpoint; a tied weight may have several."""
        names = tied_names(model)
        return {key: value for name, value in update.items() for key in names[name] if key in self.state}

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
    """Find the state dict: under one of the usual keys, or the content itself; what is no tensor in it is left be."""
    candidates = [content.get(nest) for nest in NESTS] if isinstance(content, Mapping) else []
    for candidate in (*candidates, content):
        if isinstance(candidate, Mapping):
            state = {key: value for key, value in candidate.items() if isinstance(value, Tensor)}
            if state:
                return state
    keys = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else type(content).__name__
    raise CheckpointError(f"{path} holds no state dict (it holds {keys}); save model.state_dict() in it")


def _few(what: str, names: list[str]) -> str:
    return f"{len(names)} {what}" + (f" ({', '.join(names[:3])}{', …' if len(names) > 3 else ''})" if names else "")

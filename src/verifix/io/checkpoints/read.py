"""Open a checkpoint of any form."""

from __future__ import annotations

from pathlib import Path

from verifix.io.checkpoints.checkpoint import Checkpoint
from verifix.io.checkpoints.sharded import INDEX, check_shards, open_folder, refuse_adapter
from verifix.io.checkpoints.state_dict import Found, choose_state
from verifix.io.checkpoints.weight_file import read_part


def read_checkpoint(path: str | Path, weights: str = "auto") -> Checkpoint:
    """Read a checkpoint without running any code in it.

    Parameters
    ----------
    path
        A ``.safetensors`` file; a ``.pt``, ``.pth``, ``.pth.tar``, ``.bin`` or ``.ckpt`` file; an index of several
        (``.index.json``); or a folder that transformers has saved.
    weights
        Which weights to use if there are several: "raw", "ema" (averaged over training steps), or "auto" for the
        averaged ones if there are any.

    Returns
    -------
    Checkpoint
        Its content.

    Raises
    ------
    UsageError
        If there is no such file, or its suffix is another.
    CheckpointError
        If it is damaged, holds no state dict, or is an adapter.
    """
    path = Path(path)
    refuse_adapter(path)
    if path.is_dir() or path.name.endswith(INDEX):
        folder = open_folder(path)
        parts = tuple(read_part(folder.root / name) for name in folder.weights)
        states = [choose_state(part.found, weights, part.path) for part in parts]
        check_shards(folder, {part.path.name: state.tensors for part, state in zip(parts, states, strict=True)})
        tensors = {key: value for state in states for key, value in state.tensors.items()}
        entries = {key: value for state in states for key, value in state.matchable.items()}
        return Checkpoint(path, parts, Found(states[0].kind, states[0].place, tensors, entries), weights, folder)
    part = read_part(path)
    return Checkpoint(path, (part,), choose_state(part.found, weights, path), weights)

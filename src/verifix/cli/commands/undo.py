"""`verifix undo`: the original checkpoint from a corrected one, proved by hash."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from verifix.cli.commands.places import read_by
from verifix.cli.options import UndoCommand
from verifix.errors import UsageError, printable
from verifix.io.checkpoints.checkpoint import Checkpoint
from verifix.io.checkpoints.read import read_checkpoint
from verifix.io.checkpoints.undo import read_undo, restore
from verifix.io.checkpoints.undo_record import correction_path
from verifix.storage.transaction import settle


@dataclass(frozen=True)
class Undone:
    """A checkpoint that is the original again.

    Attributes
    ----------
    checkpoint, correction_file, out
        The corrected checkpoint, the file that undid the correction, and what was written.
    tensors, restored, identical, files, left_out
        See `verifix.io.checkpoints.undo.restore`.
    seconds
        What it took.
    """

    checkpoint: str
    correction_file: str
    out: str
    tensors: int
    restored: int
    identical: bool
    files: Mapping[str, Mapping[str, Any]]
    left_out: list[str]
    seconds: float


def run_undo(command: UndoCommand) -> tuple[int, Undone, str]:
    """Restore the original of a corrected checkpoint; see `UndoCommand`."""
    start = time.perf_counter()
    settle(Path(command.checkpoint))  # a killed run may have left the checkpoint and its correction file half written
    checkpoint = read_checkpoint(command.checkpoint)
    beside = _correction_file(command, checkpoint)
    out = Path(command.out)
    checkpoint.check_outputs(out, [], [*read_by(command), beside], force=command.force)
    restored = restore(checkpoint, read_undo(beside), out, force=command.force)
    seconds = round(time.perf_counter() - start, 2)
    undone = Undone(str(checkpoint.path), str(beside), str(out), **restored, seconds=seconds)
    return 0, undone, _text(undone)


def _correction_file(command: UndoCommand, checkpoint: Checkpoint) -> Path:
    if command.correction is not None:
        return Path(command.correction)
    beside = correction_path(checkpoint.path if checkpoint.folder is None else checkpoint.folder.root)
    if not beside.is_file():
        raise UsageError(
            f"{beside} does not exist; undo needs the correction file that was written with {checkpoint.path}: name it "
            "with --correction"
        )
    return beside


def _text(undone: Undone) -> str:
    lines = [
        f"Restored {undone.restored} of {undone.tensors} tensors; all {undone.tensors} have the SHA-256 that they had "
        "before the correction."
    ]
    differing = [name for name, file in undone.files.items() if not file["identical"]]
    if differing:
        names = printable(", ".join(differing), one_line=True)
        lines.append(f"The bytes of {names} differ from the original's outside the tensors.")
    elif not undone.left_out:
        many = len(undone.files) > 1
        lines.append(f"{undone.out} is identical to the original, {'file by file' if many else 'to the byte'}.")
    if undone.left_out:
        left = printable(", ".join(undone.left_out), one_line=True)
        lines.append(
            f"Not restored, because the correction had left them out: {left}. All other files are as described above."
        )
    lines.append(f"Wrote {undone.out}. {undone.seconds:.0f} s.")
    return "\n".join(lines)

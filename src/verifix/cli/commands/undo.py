"""`verifix undo`: the original checkpoint from a corrected one, proved by hash."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from verifix.cli.options import UndoCommand
from verifix.errors import UsageError
from verifix.io.checkpoints.checkpoint import Checkpoint, correction_path, read_checkpoint
from verifix.io.checkpoints.undo import read_undo, restore
from verifix.storage.transaction import settle


def run_undo(command: UndoCommand) -> tuple[int, dict[str, Any], str]:
    """Restore the original of a corrected checkpoint; see `UndoCommand`."""
    start = time.perf_counter()
    settle(Path(command.checkpoint))  # a killed run may have left the checkpoint and its correction file half written
    checkpoint = read_checkpoint(command.checkpoint)
    beside = _correction_file(command, checkpoint)
    out = Path(command.out)
    checkpoint.check_outputs(out, [], [beside], force=command.force)
    result: dict[str, Any] = {"checkpoint": str(checkpoint.path), "correction_file": str(beside), "out": str(out)}
    result |= restore(checkpoint, read_undo(beside), out, force=command.force)
    result["seconds"] = round(time.perf_counter() - start, 2)
    return 0, result, _text(result)


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


def _text(result: dict[str, Any]) -> str:
    lines = [
        f"Restored {result['restored']} of {result['tensors']} tensors; all {result['tensors']} have the SHA-256 that "
        "they had before the correction."
    ]
    differing = [name for name, file in result["files"].items() if not file["identical"]]
    if differing:
        lines.append(f"The bytes of {', '.join(differing)} differ from the original's beside the tensors.")
    elif not result["left_out"]:
        many = len(result["files"]) > 1
        lines.append(f"{result['out']} is identical to the original, {'file by file' if many else 'to the byte'}.")
    if result["left_out"]:
        left = ", ".join(result["left_out"])
        lines.append(f"Not restored, because the correction had left them out: {left}. All other files are as said.")
    lines.append(f"Wrote {result['out']}. {result['seconds']:.0f} s.")
    return "\n".join(lines)

"""A corrected checkpoint becomes the original again, from the correction file alone, and hashes prove it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from verifix.correction import Correction, Record, load_with_record
from verifix.errors import CheckpointError, VerifixError
from verifix.io.checkpoints.checkpoint import Checkpoint
from verifix.io.checkpoints.undo_record import FORMAT, content_digest
from verifix.io.checkpoints.weight_file import Part, digests, tensors_in
from verifix.model.tensors import tensor_digest
from verifix.storage.atomic import file_digest, write_together


@dataclass(frozen=True)
class Undo:
    """What a correction file says about the files of a checkpoint.

    Attributes
    ----------
    path
        The correction file.
    correction
        Its weights.
    record
        What has become of the files, and values from before that the weights do not tell.
    """

    path: Path
    correction: Correction
    record: Record

    @property
    def files(self) -> Mapping[str, Mapping[str, Any]]:
        """What is said about each file; see `verifix.io.checkpoints.undo_record.change`."""
        return self.record.about["files"]  # type: ignore[no-any-return]


def read_undo(path: Path) -> Undo:
    """Read a correction file that belongs to a checkpoint.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    Undo
        What it says.

    Raises
    ------
    CheckpointError
        If it is damaged, or says nothing of a checkpoint.
    """
    correction, record = load_with_record(path)
    if record is None:
        raise CheckpointError(
            f"{path} was saved without a checkpoint, so it has no files to restore; load it with "
            "verifix.Correction.load and call undo_ with the model"
        )
    if not isinstance(record.about, dict) or record.about.get("format") != FORMAT:
        raise CheckpointError(f"{path} is of another version of verifix; undo with the version that wrote it")
    return Undo(path, correction, record)


def restore(checkpoint: Checkpoint, undo: Undo, out: Path, *, force: bool) -> dict[str, Any]:
    """Write the original of a corrected checkpoint, read it back, and compare every hash.

    Parameters
    ----------
    checkpoint
        The corrected checkpoint.
    undo
        What its correction file says.
    out
        Where to.
    force
        Replace what exists.

    Returns
    -------
    dict
        ``tensors`` and ``restored``: how many there are, and how many were given their values back; ``files``: by name
        ``sha256`` and whether it is ``identical`` to the original, to the byte; ``identical``: whether all are;
        ``left_out``: files that the correction had left out, which nothing can restore.

    Raises
    ------
    CheckpointError
        If the checkpoint is not the corrected one, or any hash does not come out as recorded; nothing is written then.
    """
    try:
        heads = _put_back(checkpoint, undo)
    except VerifixError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{undo.path} is damaged ({error!r}); restore it from a copy") from None
    output = checkpoint.writing(out, heads)
    files: dict[str, Any] = {}

    def fill(path: Path) -> None:
        output.fill(path)
        files.update(_hashed(path, undo))

    write_together([replace(output, fill=fill)], force=force)
    return {
        "tensors": sum(len(said["tensors"]) for said in undo.files.values()),
        "restored": sum(len(said["changed"]) for said in undo.files.values()),
        "identical": all(file["identical"] for file in files.values()) and not undo.record.about["left_out"],
        "files": files,
        "left_out": undo.record.about["left_out"],
    }


def _put_back(checkpoint: Checkpoint, undo: Undo) -> dict[str, bytes]:
    """Give the tensors that were read their values back; return the headers and comments of the files they are in."""
    parts = checkpoint.files
    if parts.keys() != undo.files.keys():
        raise CheckpointError(
            f"{undo.path} belongs to a checkpoint with other files than {checkpoint.path}; give the correction file "
            "that was written with it"
        )
    for name, part in parts.items():
        _check_corrected(part, undo.files[name], undo.path)
    for name, part in parts.items():
        said, found = undo.files[name], tensors_in(part.content)
        for place, entry in said["changed"].items():
            kind, _, key = entry["from"].partition("/")
            held = undo.record.tensors if kind == "source" else undo.correction.original
            found[place].data.copy_(held[key])
        if content_digest(digests(part.content)) != said["content_sha256"]:
            raise CheckpointError(
                f"{part.path} has the corrected tensors, but other content has changed since the correction; "
                "give the file that verifix wrote"
            )
    return {name: said["head"].encode("latin-1") for name, said in undo.files.items() if said["changed"]}


def _check_corrected(part: Part, said: Mapping[str, Any], path: Path) -> None:
    """Refuse what is not exactly what the correction has made."""
    now = {place: tensor_digest(tensor) for place, tensor in tensors_in(part.content).items()}
    expected = said["tensors"] | {place: entry["sha256"] for place, entry in said["changed"].items()}
    if now.keys() != said["tensors"].keys():
        raise CheckpointError(f"{path} belongs to another checkpoint than {part.path}; give the one written with it")
    if said["changed"] and now == said["tensors"]:
        raise CheckpointError(f"{part.path} holds the original weights already; there is nothing to undo")
    wrong = sorted(place for place in now if now[place] != expected[place])
    if wrong:
        raise CheckpointError(
            f"{part.path} does not hold what {path} says ({len(wrong)} of {len(now)} tensors differ, {wrong[0]} "
            "first): it is another checkpoint, or was changed or damaged since; give the two files that were written "
            "together"
        )


def _hashed(path: Path, undo: Undo) -> dict[str, Any]:
    """Compare the SHA-256 of the restored files, which were read back as they were written, with what was recorded."""
    files = {name or path.name: said["sha256"] for name, said in undo.files.items()} | undo.record.about["others"]
    places = {name: path / name if path.is_dir() else path for name in files}
    found = {name: file_digest(place) if place.is_file() else None for name, place in places.items()}
    return {name: {"sha256": found[name], "identical": found[name] == files[name]} for name in files}

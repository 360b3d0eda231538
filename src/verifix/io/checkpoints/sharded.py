"""Weights in several files, and the folders that transformers writes."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from torch import Tensor

from verifix.errors import CheckpointError, UsageError
from verifix.storage.atomic import special

INDEX = ".index.json"
WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
"""What holds the weights of a folder: the first that is there, as in transformers."""

OTHER_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", f"*{INDEX}", "tf_model*.h5", "flax_model*.msgpack")
"""Further files that hold the same weights again, and that a corrected folder must not hold uncorrected."""

ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Folder:
    """Files that belong together.

    Attributes
    ----------
    root
        Where they lie.
    weights
        Names of the files that hold the weights.
    index
        Which of them holds which tensor; empty without an index.
    others
        Paths of all other files that belong to them, relative to the root.
    left_out
        Names of files that hold the same weights in another format.
    obstacles
        What cannot be copied, one sentence each.
    """

    root: Path
    weights: tuple[str, ...]
    index: Mapping[str, str]
    others: tuple[str, ...]
    left_out: tuple[str, ...]
    obstacles: tuple[str, ...] = ()

    def check_copyable(self) -> None:
        """Refuse a folder that holds what cannot be copied, or what leads out of it.

        Raises
        ------
        CheckpointError
            Naming the first obstacle.
        """
        if self.obstacles:
            more = f", and {len(self.obstacles) - 1} more" * (len(self.obstacles) > 1)
            raise CheckpointError(
                f"{self.obstacles[0]}{more}; a corrected folder is a copy of the given one, so remove it, or replace "
                "it by what it leads to"
            )


def refuse_adapter(path: Path) -> None:
    """Refuse an adapter of PEFT.

    Parameters
    ----------
    path
        A folder or a file.

    Raises
    ------
    CheckpointError
        If it is one, or holds one.
    """
    if path.name in ADAPTERS or any((path / name).is_file() for name in ADAPTERS):
        raise CheckpointError(
            f"{path} is a PEFT adapter, not a whole model; merge it with model.merge_and_unload(), save that with "
            "save_pretrained, and give the new folder"
        )


def open_folder(path: Path) -> Folder:
    """Find the weights in a folder, or those that an index names.

    Parameters
    ----------
    path
        A folder, or an index: then the folder has no other files than the index and what it names.

    Returns
    -------
    Folder
        What is in it; nothing but the index is read.

    Raises
    ------
    CheckpointError
        If there are no weights, or the index does not fit its files.
    """
    root = path if path.is_dir() else path.parent
    found = path.name if not path.is_dir() else next((name for name in WEIGHTS if (path / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{path} is a folder without weights; it must hold one of {', '.join(WEIGHTS)}")
    index = read_index(root / found) if found.endswith(INDEX) else {}
    weights = tuple(sorted(set(index.values()))) or (found,)
    if not path.is_dir():
        return Folder(root, weights, index, (found,), ())
    left_out = tuple(
        name
        for name in sorted(file.name for file in root.iterdir() if file.is_file())
        if name not in (*weights, found) and any(fnmatch(name, pattern) for pattern in OTHER_WEIGHTS)
    )
    found_there = {str(file.relative_to(root)): obstacle for file, obstacle in _contents(root, root)}
    own = {name: found_there[name] for name in sorted(found_there) if name not in (*weights, *left_out)}
    obstacles = tuple(filter(None, own.values()))
    return Folder(root, weights, index, tuple(name for name in own if not own[name]), left_out, obstacles)


def _contents(folder: Path, root: Path, around: tuple[Path, ...] = ()) -> Iterator[tuple[Path, str]]:
    """Yield everything below a folder but folders, and why it cannot be copied; "" for what can."""
    around = (*around, folder.resolve())
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        yield folder, f"{folder} cannot be read ({error.strerror})"
        return
    for entry in entries:
        path = Path(entry.path)
        real = Path(os.path.realpath(path))  # unlike Path.resolve, it bears links that lead to themselves
        if entry.is_symlink() and not any(real.is_relative_to(place) for place in _own(root)):
            yield path, f"{path} is a link to {path.readlink()}, which is not in the folder {root}"
        elif real in around:
            yield path, f"{path} is a link to a folder that it is in"
        elif real.is_dir():
            yield from _contents(path, root, around)
        elif not real.is_file():
            what = f"a link to {path.readlink()}, which is not there" if entry.is_symlink() else special(path)
            yield path, f"{path} is {what or 'no regular file'}"
        else:
            yield path, "" if os.access(real, os.R_OK) else f"{path} cannot be read (Permission denied)"


def _own(root: Path) -> list[Path]:
    """Return where links may lead: elsewhere lie files that are not to be published, or that have no end."""
    # A snapshot in the cache of the Hugging Face hub is made of links to the blobs beside it.
    real = root.resolve()
    return [real, real.parent.parent / "blobs"] if real.parent.name == "snapshots" else [real]


def read_index(path: Path) -> dict[str, str]:
    """Read which file holds which tensor.

    Parameters
    ----------
    path
        An index as transformers writes it.

    Returns
    -------
    dict
        File names by tensor.

    Raises
    ------
    UsageError
        If there is no such file.
    CheckpointError
        If it is something else, or names a file that is not there or not in its folder.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist or is not a file; check the path")
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a readable index ({error}); restore it from a copy") from None
    index = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
        raise CheckpointError(f"{path} is not an index: it has no weight_map with a file for every tensor; restore it")
    for name in sorted(set(index.values())):
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise CheckpointError(f"{path} names {name!r}, which is not in its folder; an index names files beside it")
        if not (path.parent / name).is_file():
            raise CheckpointError(f"{path} names {name}, which is missing; provide all files of the checkpoint")
    if len({Path(name).suffix for name in index.values()}) > 1:
        raise CheckpointError(f"{path} names files of different formats; save the model again")
    return index


def check_shards(folder: Folder, shards: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Check that every file holds the tensors that the index says.

    Parameters
    ----------
    folder
        The folder, with its index.
    shards
        Tensors by key, by file.

    Raises
    ------
    CheckpointError
        If one holds fewer or more.
    """
    for name, tensors in shards.items() if folder.index else ():
        said = {key for key, file in folder.index.items() if file == name}
        for what, keys in (("has no", said - tensors.keys()), ("also has", tensors.keys() - said)):
            if keys:
                raise CheckpointError(
                    f"{folder.root / name} {what} {sorted(keys)[0]!r}, contrary to the index; provide all files "
                    "from the same checkpoint"
                )

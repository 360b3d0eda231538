"""Open labelled samples, whatever they are kept in: one table of readers."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from verifix.errors import UsageError
from verifix.io.data.cifar_n import CIFAR10N, CIFAR100N, read_cifar_n
from verifix.io.data.groups import check_grouped
from verifix.io.data.hf_datasets import is_saved_dataset, read_saved
from verifix.io.data.images import Images, files_below, note_small, read_folder
from verifix.io.data.left_out import note_left_out
from verifix.io.data.manifests import read_samples_of
from verifix.io.data.noisy_benchmarks import read_clothing1m, read_webvision
from verifix.io.data.npz import Arrays, read_npz
from verifix.io.data.preparation import Preparation
from verifix.io.data.preprocessing import prepare
from verifix.io.data.records import VERIFIED, Header, header_of
from verifix.io.data.tables import TABLES, Table, read_table
from verifix.io.data.verified import origin_of, read_verified
from verifix.io.data.webdataset import read_shards
from verifix.io.options import DataOptions
from verifix.model.sources import Source

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")

SETS: dict[str, Callable[[str, Preparation], Dataset[Any]]] = {
    "webvision": read_webvision,
    "mini-webvision": lambda rest, preparation: read_webvision(rest, preparation, mini=True),
    "clothing1m": read_clothing1m,
    "cifar10n": lambda rest, preparation: read_cifar_n(rest, preparation, CIFAR10N, "cifar10n"),
    "cifar100n": lambda rest, preparation: read_cifar_n(rest, preparation, CIFAR100N, "cifar100n"),
}
"""Sets with a layout of their own, by what stands before the first colon."""


def _of_arrays(arrays: Arrays) -> Source:
    return Source(arrays, prepared=arrays.prepared)


def _of_table(path: Path, options: DataOptions, preparation: Preparation) -> Source:
    header = header_of(path)
    if header is not None and header.format == VERIFIED:
        return read_verified(path, options, preparation, _opened)
    if header is not None:
        raise UsageError(f"{path} is a queue of samples that are still to be verified; verify them with verifix review")
    return read_samples_of(read_table(path), options, preparation)


FILES: dict[str, Callable[[Path, DataOptions, Preparation], Source]] = {
    ".npz": lambda path, options, preparation: _of_arrays(read_npz(path, options, preparation)),
    **dict.fromkeys(TABLES, _of_table),
    ".tar": lambda path, options, preparation: read_shards(str(path), options, preparation),
}
"""Files by their ending, in small letters or capitals."""


def open_data(
    path: str | Path, options: DataOptions, preparation: Preparation | None = None, *, labelled: bool = True
) -> Source:
    """Open samples, with their groups if a column of these was named.

    Parameters
    ----------
    path
        A folder with one subfolder of images per class, or with ``metadata.csv``; a table (``.csv``, ``.tsv``,
        ``.jsonl``, ``.parquet``); records of ``verifix review`` (``.jsonl``); a folder of ``datasets.save_to_disk``,
        with ``:SPLIT`` if it has several; ``.tar`` shards; a ``.npz`` file; or one of `SETS` with its folder.
    options
        Names of columns and classes.
    preparation
        How to turn samples into inputs; by default as the flags in `options` say.
    labelled
        Whether to read labels; else there need be none, and images may lie in a folder without class folders.

    Returns
    -------
    Source
        Yields samples by index.

    Raises
    ------
    UsageError
        If there is nothing there, or its kind is unknown.
    DataError
        If it cannot be read, or its labels do not fit the class names.
    """
    preparation = replace(prepare(None, "", options) if preparation is None else preparation, labelled=labelled)
    source = check_grouped(_opened(path, options, preparation), options, path)
    if isinstance(source.dataset, Images):
        note_small(source.dataset, preparation, str(path))
    return source if source.prepared else replace(source, prepared=preparation.description)


def reopen(header: Header, path: str, pool: str | None = None) -> Source:
    """Open the data set that a queue or a file of records is about, to look at its samples without a model.

    Parameters
    ----------
    header
        The first line of the file.
    path
        The file, for messages.
    pool
        Where the data set is, if not where the header says.

    Returns
    -------
    Source
        Its samples with their given labels, in the order of ids. Texts are not cut into tokens.

    Raises
    ------
    UsageError
        If it is not there.
    DataError
        If it is not as it was.
    """
    options = DataOptions(pool=pool)
    plain = prepare(None, "", options)
    if header.options.get("texts"):
        plain = replace(plain, tokenize=lambda _: {}, pad=lambda _: {})
    return origin_of(header, options, plain, _opened, path)


def _opened(path: str | Path, options: DataOptions, preparation: Preparation) -> Source:
    name, _, rest = str(path).partition(":")
    if name in SETS and rest:
        return Source(SETS[name](rest, preparation))
    file = Path(path)
    if file.is_dir():
        return _open_folder(file, options, preparation)
    reader = FILES.get(file.suffix.lower())
    if reader is not None and (file.is_file() or "{" in str(path)):
        return reader(file, options, preparation)
    folder, _, split = str(path).rpartition(":")
    if folder and is_saved_dataset(Path(folder)):
        return read_saved(Path(folder), split, options, preparation)
    if folder and Path(folder).is_dir():
        raise UsageError(
            f"{folder} has no dataset_dict.json, so it has no split {split!r}; only folders of datasets.save_to_disk do"
        )
    if not file.is_file():
        raise UsageError(f"{path} does not exist; check the path of the data")
    raise UsageError(
        f"{path} has no known data format; give an image folder, a {', '.join(FILES)} file, a folder of "
        f"datasets.save_to_disk, or {', '.join(SETS)} with a folder"
    )


def _open_folder(path: Path, options: DataOptions, preparation: Preparation) -> Source:
    if is_saved_dataset(path):
        return read_saved(path, None, options, preparation)
    metadata = next((path / name for name in METADATA if (path / name).is_file()), None)
    if metadata is not None:
        table = read_table(metadata)
        source = read_samples_of(table, options, preparation)
        _note_unlisted(path, table, options)
        return source
    return Source(read_folder(path, preparation))


def _note_unlisted(folder: Path, table: Table, options: DataOptions) -> None:
    """Say which files of a folder its metadata does not list, where it lists files."""
    column = options.image_column or "file_name"
    if column not in table.names or options.image_root is not None or options.text_column is not None:
        return
    listed = {os.path.normpath(str(folder / str(name))) for name in table.column(column)}
    listed.add(os.path.normpath(str(table.path)))
    left = [str(file) for file in files_below(folder) if os.path.normpath(str(file)) not in listed]
    note_left_out(left, str(folder), f"not listed in {table.path.name}")

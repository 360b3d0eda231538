"""Which data set it is: where it lies, what its samples are called, and a hash of their names and labels."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from verifix.io.options import DataOptions
from verifix.model.sources import ask_dataset

NAMED = ("label_column", "image_column", "text_column", "image_root", "classes")
"""Settings that it takes to open a data set again, without a model."""

Opening = dict[str, Any]


def opening_of(options: DataOptions, *, labels: bool, texts: bool, classes: Sequence[str] | None) -> Opening:
    """Return what it takes to open a data set again, as plain data.

    Parameters
    ----------
    options
        Those that it was opened with.
    labels
        Whether its labels were read.
    texts
        Whether its samples are texts.
    classes
        The class names that its labels were mapped with; None if they are class numbers.

    Returns
    -------
    dict
        Values of `NAMED`, and ``labels`` and ``texts``.
    """
    found = {name: getattr(options, name) for name in NAMED}
    if options.image_root is not None:
        found["image_root"] = os.path.abspath(options.image_root)  # noqa: PTH100 - links stay as they are
    return found | {"classes": None if classes is None else list(classes), "labels": labels, "texts": texts}


def absolute(data: str, layouts: Iterable[str]) -> str:
    """Return a data set as ``--data`` names it, with an absolute path, wherever the path stands in it.

    Parameters
    ----------
    data
        A path, with a split behind it or a layout before it.
    layouts
        Names of layouts.

    Returns
    -------
    str
        The same data set.
    """
    name, _, rest = data.partition(":")
    before, path = (f"{name}:", rest) if name in layouts and rest else ("", data)
    return before + os.path.abspath(path)  # noqa: PTH100 - links stay as they are


def folder_of(data: str, image_root: str | None) -> str | None:
    """Return the folder that the files of a data set are named relative to; None if its path does not say it."""
    if image_root is not None:
        return image_root
    path = Path(data)
    return data if path.is_dir() else str(path.parent) if path.is_file() else None


def files_of(dataset: Any, count: int, folder: str | None) -> list[str | None]:
    """Return the names of the files of samples.

    Parameters
    ----------
    dataset
        The data set.
    count
        Number of its samples.
    folder
        The folder that names are relative to, where files lie in it; else the longest one that all files lie in.

    Returns
    -------
    list
        One name per sample, with slashes; None for a sample without a file of its own.
    """
    paths = [ask_dataset(dataset, i, "file") for i in range(count)]
    known = [os.path.abspath(path) for path in paths if path is not None]  # noqa: PTH100
    if not known:
        return paths
    root = os.path.abspath(folder) if folder is not None else ""  # noqa: PTH100
    if not root or any(not path.startswith(root + os.sep) for path in known):
        root = os.path.commonpath([os.path.dirname(path) for path in known])  # noqa: PTH120 - a million of them
    names = iter([path[len(root) :].lstrip(os.sep).replace(os.sep, "/") for path in known])
    return [None if path is None else next(names) for path in paths]


def fingerprint_of(files: Iterable[str | None], labels: Iterable[int]) -> str:
    """Return the SHA-256 (hexadecimal) of the names and labels of all samples, in their order."""
    digest = hashlib.sha256()
    for file, label in zip(files, labels, strict=True):
        digest.update(f"{'' if file is None else file}\0{int(label)}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()

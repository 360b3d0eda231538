"""What stands for an image in a table or data set: its file's bytes, its path, or both. Read in one way everywhere."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from verifix.errors import DataError, UsageError


def root_of(image_root: str | None, default: Path) -> Path:
    """Return the folder that the paths of images are relative to, and must lead into.

    Parameters
    ----------
    image_root
        The folder that the user gave.
    default
        The folder of the table or data set.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    UsageError
        If there is no such folder.
    """
    root = default if image_root is None else Path(image_root)
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder; --image-root is the folder that file names are relative to")
    return root


def image_bytes(value: Any, root: Path, place: str) -> bytes:
    """Return the file of an image.

    Parameters
    ----------
    value
        Bytes; a path; or ``{bytes, path}`` as the datasets library stores it, where the bytes may be missing.
    root
        The folder that paths are relative to, and must lead into.
    place
        Where the value stands, for messages.

    Returns
    -------
    bytes
        The content of the file.

    Raises
    ------
    DataError
        If there is neither, or the path leads out of the folder or to no file.
    """
    content = value.get("bytes") if isinstance(value, Mapping) else value
    if isinstance(content, bytes):
        return content
    path = path_in(value)
    if path is None:
        raise DataError(f"{place} is empty: it has neither bytes nor a path; replace it or leave it out")
    return Path(file_inside(root, path, place)).read_bytes()


def path_in(value: Any) -> Any:
    """Return the path that stands for an image, alone or in ``{bytes, path}`` without bytes."""
    return value.get("path") if isinstance(value, Mapping) and value.get("bytes") is None else value


def file_inside(root: Path, name: Any, place: str) -> str:
    """Return the path of a file named in a table; a table from elsewhere must not reach other files.

    Parameters
    ----------
    root
        The folder that it must lie in.
    name
        Its name there.
    place
        Where the name stands, for messages.

    Returns
    -------
    str
        The path.

    Raises
    ------
    DataError
        If it is no name, or leads out of the folder or to no file.
    """
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise DataError(f"{place} has {name!r} instead of a file name; name an image, or leave the sample out")
    base, path = os.path.abspath(root), os.path.abspath(root / name)  # noqa: PTH100 - links may lead elsewhere
    if os.path.commonpath([base, path]) != base:
        raise DataError(
            f"{place} names {name}, which is outside of {root}; give names inside that folder, or another folder with "
            "--image-root"
        )
    if not os.path.isfile(path):  # noqa: PTH113 - the path is text already
        raise DataError(
            f"{place} names {name}, but {root / name} is not a file; correct the name, or give --image-root"
        )
    return str(root / name)

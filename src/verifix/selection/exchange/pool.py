"""The data set that labels are exchanged for: names of its samples, and which sample another tool means."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from verifix.errors import DataError, first_of
from verifix.io.data.identity import files_of, folder_of
from verifix.io.data.open import reopen
from verifix.io.data.records import Header
from verifix.model.class_names import as_written
from verifix.model.sources import ask_dataset

UPLOADED = re.compile(r"/data/upload/\d+/[0-9a-f]{8}-([^/]+)$")


@dataclass(frozen=True, eq=False)
class Pool:
    """A data set, opened to look at its samples.

    Attributes
    ----------
    header
        The first line of a queue or of records, which says which data set it is.
    dataset
        Its samples.
    folder
        What the names of files are relative to; None if there are none.
    files
        Name of the file of each sample; None for those without one.
    """

    header: Header
    dataset: Any
    folder: str | None
    files: Sequence[str | None]

    def given(self, index: int) -> str | None:
        """Return the name of the given class of a sample; None if it has none."""
        label = int(self.dataset.labels[index])
        return self.header.classes[label] if label >= 0 else None

    def text(self, index: int) -> str | None:
        """Return the text of a sample; None if it is none."""
        text: str | None = ask_dataset(self.dataset, index, "text")
        return text

    def path(self, index: int) -> str | None:
        """Return where the file of a sample is."""
        path: str | None = ask_dataset(self.dataset, index, "file")
        return None if path is None else str(Path(path).absolute())

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        """Samples by the last part of the name of their file."""
        found: dict[str, list[int]] = defaultdict(list)
        for i, file in enumerate(self.files):
            if file is not None:
                found[PurePosixPath(file).name].append(i)
                found[PurePosixPath(file).stem].append(i)
        return found

    def index_of(self, name: str, place: str) -> int:
        """Find the sample that another tool calls by a name.

        Parameters
        ----------
        name
            A path or an address, with or without folders before it, and with or without a suffix.
        place
            Where the name stands, for messages.

        Returns
        -------
        int
            The sample whose file has that name.

        Raises
        ------
        DataError
            If there is none, or several.
        """
        path = _path_in(name)
        found = {i for i in self._by_name.get(path.name, ()) if _ends_alike(path, PurePosixPath(str(self.files[i])))}
        exact = {i for i in found if self.files[i] == str(path)}
        found = exact or found
        if len(found) == 1:
            return found.pop()
        what = "none" if not found else f"{len(found)} ({first_of(self.files[i] for i in sorted(found))})"
        raise DataError(
            f"{place} names the file {name!r}, and {what} of the {len(self.files)} samples has that name; call files "
            "as they are called there, with their folders"
        )

    def class_named(self, label: object, place: str) -> str:
        """Return the name of a class that another tool calls by its name or its number.

        Parameters
        ----------
        label
            The name; or the number, if it is no name.
        place
            Where it stands, for messages.

        Returns
        -------
        str
            The name.

        Raises
        ------
        DataError
            If there is no such class.
        """
        classes, name = self.header.classes, as_written(label)
        if name in classes:
            return name
        if name.isdecimal() and int(name) < len(classes):
            return classes[int(name)]
        raise DataError(
            f"{place} has the label {name!r}, which is not among the classes {first_of(classes, 10)}; correct it"
        )


def _path_in(name: str) -> PurePosixPath:
    """Return the path in a name or an address; that of a local file of Label Studio stands behind ``?d=``."""
    # Files that were uploaded to Label Studio have lost their folder, and have eight letters before their name.
    if uploaded := UPLOADED.search(name):
        return PurePosixPath(unquote(uploaded[1]))
    parts = urlsplit(name) if "://" in name or "?d=" in name else None
    if parts is None:
        return PurePosixPath(name.replace("\\", "/"))
    local = parse_qs(parts.query).get("d")
    return PurePosixPath(local[0] if local else unquote(parts.path))


def _ends_alike(path: PurePosixPath, file: PurePosixPath) -> bool:
    """Tell whether one of two paths ends with the other, with or without the suffix of the file."""
    for own in (file, file.with_suffix("")):
        count = min(len(path.parts), len(own.parts))
        if path.parts[-count:] == own.parts[-count:]:
            return True
    return False


def pool_of(header: Header, path: str, pool: str | None = None) -> Pool:
    """Open the data set that a queue or a file of records is about.

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
    Pool
        The data set, whose length and hash are those of the header.
    """
    dataset: Any = reopen(header, path, pool).dataset
    folder = folder_of(pool or header.data, header.options.get("image_root"))
    return Pool(header, dataset, folder, files_of(dataset, len(dataset), folder))

"""Which files and folders a command reads and writes, from the declarations of its settings alone."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import get_type_hints

from verifix.errors import UsageError, did_you_mean
from verifix.io.data.open import SETS
from verifix.io.data.records import header_of
from verifix.io.models import model_files
from verifix.settings import Role, Settings


def read_by(command: Settings) -> list[Path]:
    """Return the files and folders that the settings of a command name to be read, and that are there.

    Parameters
    ----------
    command
        The settings; each that names something to read has its `Role` in its declaration.

    Returns
    -------
    list of Path
        Folders stand for all that is in them.
    """
    found = (FORMS[role](value) for role, value in _places(command) if role in FORMS)
    return [path for paths in found for path in paths if os.path.exists(path)]  # noqa: PTH110 - any text may stand here


def written_by(command: Settings) -> list[Path]:
    """Return the files and folders that the settings of a command name to be written.

    Parameters
    ----------
    command
        The settings.

    Returns
    -------
    list of Path
        In the order of their declaration.
    """
    return [Path(value) for role, value in _places(command) if role is Role.WRITES]


def check_there(command: Settings) -> None:
    """Refuse a file or data set to be read that is not there, before anything is loaded; names what is nearest to it.

    Folders of other settings, layouts, splits and shards are left to whoever reads them, who knows their forms.
    """
    for role, value in _places(command):
        place, data = Path(value), role is Role.READS_DATA
        plain = ":" not in value and "{" not in value and (data or place.suffix)
        if role not in (Role.READS, Role.READS_DATA) or not plain or place.exists():
            continue
        beside = [entry.name for entry in place.parent.iterdir()] if place.parent.is_dir() else []
        what = "the path of the data" if data else "the path"
        raise UsageError(f"{value} does not exist; check {what}{did_you_mean(place.name, beside)}")


def check_lines(out: str) -> None:
    """Refuse a name for a queue or records that says it is another kind of file."""
    if not out.lower().endswith(".jsonl"):
        raise UsageError(f"--out is {out}; queues and records are .jsonl files")


def _places(command: Settings) -> Iterator[tuple[Role, str]]:
    """Yield the role and each value of the settings that name places."""
    for name, kind in get_type_hints(type(command), include_extras=True).items():
        for role in (entry for entry in getattr(kind, "__metadata__", ()) if isinstance(entry, Role)):
            given = getattr(command, name)
            for value in given if isinstance(given, list | tuple) else [given]:
                if value:
                    yield role, str(value)


def _data_files(value: str) -> list[Path]:
    """Return where samples are: a path, a folder with a split behind it or a layout before it, or several shards."""
    layout, _, rest = value.partition(":")
    places = [rest, rest.rpartition(":")[0]] if layout in SETS else [value, value.rpartition(":")[0]]
    pattern = re.sub(r"\{[^{}]*\}", "*", glob.escape(value))
    shards = glob.glob(pattern) if "{" in value else []  # noqa: PTH207 - it may begin anywhere
    return [*(Path(place) for place in (*places, *shards) if place), *_behind(value)]


def _one(value: str) -> list[Path]:
    return [Path(value), *_behind(value)]


def _behind(value: str) -> list[Path]:
    """Return what is read because a queue or a file of records names it: its data set, and earlier rounds."""
    header = header_of(value)
    if header is None:
        return []
    return [*(_data_files(header.data) if header.data != value else []), *map(Path, header.earlier)]


FORMS: Mapping[Role, Callable[[str], list[Path]]] = {
    Role.READS: _one,
    Role.READS_LIST: _one,
    Role.READS_MODEL: model_files,
    Role.READS_DATA: _data_files,
}
"""What is read under a value, by its role."""

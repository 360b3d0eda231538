"""Numbers about many samples, kept chunk by chunk in a folder, so that a run that was killed goes on where it was.

While a run lasts, the folder holds ``about.json``, which says what the numbers are of, and one ``.npz`` file for each
chunk that is finished. In the end each process writes one Parquet file, and the chunks are removed.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from verifix.errors import UsageError
from verifix.storage.atomic import write_atomically

Arrays = dict[str, np.ndarray[Any, Any]]

CHUNK = 2048
"""Samples of a chunk, in whole batches: what a kill costs at most, in every process."""

ABOUT = "about.json"
CHUNK_NAME = re.compile(r"[a-z]+-\d{9}-\d{9}\.npz")
FINISHED = re.compile(r"scores-\d{5}-of-\d{5}\.parquet")


class Chunks:
    """The chunks of one run.

    Parameters
    ----------
    folder
        Where they are kept; None to keep nothing.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else Path(folder)

    def split(self, count: int, batch_size: int) -> list[range]:
        """Return samples in neighbouring parts of whole batches; each is a batch if nothing is kept."""
        size = batch_size if self.folder is None else max(1, CHUNK // batch_size) * batch_size
        return [range(start, min(start + size, count)) for start in range(0, count, size)]

    def check(self) -> None:
        """Refuse a folder with finished files, or with anything that is not of such a run.

        Raises
        ------
        UsageError
            Naming what is there.
        """
        if self.folder is None:
            return
        if not self.folder.parent.is_dir() or (self.folder.exists() and not self.folder.is_dir()):
            raise UsageError(f"{self.folder} cannot be a folder of scores; name a new folder in one that exists")
        there = [path.name for path in self.folder.iterdir()] if self.folder.exists() else []
        finished = [name for name in there if FINISHED.fullmatch(name)]
        other = [name for name in there if not (name.startswith(".") or name == ABOUT or CHUNK_NAME.fullmatch(name))]
        if set(other) - set(finished):
            raise UsageError(f"{self.folder} holds other files ({min(other)}); name a new folder")
        if finished and ABOUT not in there:
            raise UsageError(f"{self.folder} holds the scores of a finished run; choose another name, or remove it")

    def begin(self, about: Mapping[str, object]) -> None:
        """Make the folder, or go on in it.

        Parameters
        ----------
        about
            Plain data: what the numbers are of, and how they are computed.

        Raises
        ------
        UsageError
            If it holds chunks of something else.
        """
        if self.folder is None:
            return
        self.folder.mkdir(exist_ok=True)
        text = json.dumps(about, sort_keys=True, indent=1)
        path = self.folder / ABOUT
        if not path.exists():
            write_atomically(path, lambda place: place.write_text(text, encoding="utf-8"))
            return
        for each in self.folder.iterdir():  # the last run was killed while it finished, maybe with other processes
            if FINISHED.fullmatch(each.name):
                each.unlink()
        before = json.loads(path.read_text(encoding="utf-8"))
        for name, value in json.loads(text).items():
            if before.get(name) != value:
                raise UsageError(
                    f"{self.folder} holds scores of a run with {name} {before.get(name)!r}, but now it is {value!r}; "
                    "name another folder, or remove this one"
                )

    def through(self, stage: str, work: Callable[[range], Arrays]) -> Callable[[range], Arrays]:
        """Return some work on a chunk that is done once: then its numbers come from the folder.

        Parameters
        ----------
        stage
            The name of the work, in small letters.
        work
            Computes the numbers of a chunk.

        Returns
        -------
        callable
            The same; without a folder, `work` itself.
        """
        if self.folder is None:
            return work

        def once(chunk: range) -> Arrays:
            path = self._path(stage, chunk)
            if path.exists():
                with np.load(path, allow_pickle=False) as file:
                    return dict(file)
            found = work(chunk)
            write_atomically(path, lambda place: np.savez(place, **found))  # type: ignore[arg-type]
            return found

        return once

    def kept(self, stage: str, chunk: range) -> bool:
        """Tell whether a chunk is there."""
        return self.folder is not None and self._path(stage, chunk).exists()

    def finish(self, tables: Iterable[Mapping[str, Any]], own: int, count: int) -> None:
        """Write the numbers of one process.

        Parameters
        ----------
        tables
            One or more, whose rows follow each other. Each has by name, all of one length, arrays ``[n]`` or
            ``[n, …]`` of numbers, or lists of texts.
        own, count
            The number of the process, and how many there are.
        """
        if self.folder is not None:
            path = self.folder / f"scores-{own:05d}-of-{count:05d}.parquet"
            write_atomically(path, lambda place: _write(tables, place), force=True)

    def clear(self) -> None:
        """Remove the chunks, and last what says that there are some."""
        if self.folder is not None:
            for path in self.folder.iterdir():
                if CHUNK_NAME.fullmatch(path.name):
                    path.unlink(missing_ok=True)
            (self.folder / ABOUT).unlink(missing_ok=True)

    def _path(self, stage: str, chunk: range) -> Path:
        assert self.folder is not None  # noqa: S101 - who asks has checked
        return self.folder / f"{stage}-{chunk.start:09d}-{chunk.stop:09d}.npz"


def _write(tables: Iterable[Mapping[str, Any]], path: Path) -> None:
    """Write a Parquet file table by table, so that one of them is in memory."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = (pa.table({name: _column(values) for name, values in table.items()}) for table in tables)
    first = next(arrow)
    with pq.ParquetWriter(path, first.schema) as file:
        for table in itertools.chain([first], arrow):
            file.write_table(table)


def _column(values: Any) -> Any:
    """Return values as a column of Parquet, which has its type even if it is empty."""
    import pyarrow as pa

    if isinstance(values, list):
        return pa.array(values, pa.string())
    if values.ndim == 1:
        return pa.array(values)
    offsets = np.arange(len(values) + 1, dtype=np.int32) * values.shape[1]
    return pa.ListArray.from_arrays(offsets, values.reshape(-1))

"""Progress with an estimate, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tqdm import tqdm

from verifix.errors import printable

_KEPT: ContextVar[list[str] | None] = ContextVar("kept", default=None)
_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)


@contextmanager
def quiet(*, on: bool) -> Iterator[None]:
    """Show nothing while the context lasts, if that is on: notes are kept all the same; see `notes_kept`."""
    token = _QUIET.set(on or _QUIET.get())
    try:
        yield
    finally:
        _QUIET.reset(token)


def tell(line: str, show: bool) -> None:
    """Write a line on stderr, between bars, if anything is to be shown."""
    if show and not _QUIET.get():
        tqdm.write(printable(line), file=sys.stderr)


@contextmanager
def progress_bar(title: str, total: int, show: bool, unit: str = "sample") -> Iterator[tqdm[None]]:
    """Show a bar while the context lasts.

    Parameters
    ----------
    title
        What is being done.
    total
        How many units there are.
    show
        Whether to show anything.
    unit
        What is counted.

    Yields
    ------
    tqdm
        To be moved on with ``update(n)``.
    """
    show = show and not _QUIET.get()
    with tqdm(desc=title, total=total, unit=unit, disable=not show, leave=False, dynamic_ncols=True) as bar:
        yield bar


def note(text: str) -> None:
    """Write one line to stderr, where logs belong.

    Parameters
    ----------
    text
        What to say; line breaks become spaces.
    """
    line = " ".join(text.split())
    kept = _KEPT.get()
    if kept is not None:
        kept.append(f"{line}.")
    if not _QUIET.get():
        sys.stderr.write(f"verifix: note: {printable(line)}\n")


@contextmanager
def notes_kept() -> Iterator[list[str]]:
    """Keep the notes that are written while the context lasts, for the summary and the result.

    Yields
    ------
    list of str
        The notes, each as a sentence.
    """
    kept: list[str] = []
    token = _KEPT.set(kept)
    try:
        yield kept
    finally:
        _KEPT.reset(token)


def duration(seconds: float) -> str:
    """Write a time out for reading."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

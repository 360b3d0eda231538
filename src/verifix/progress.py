"""Progress with an estimate, on stderr."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from verifix.errors import printable

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # without ipywidgets, a notebook shows bars of text: that is no fault
    from tqdm.auto import tqdm

_KEPT: ContextVar[list[str] | None] = ContextVar("kept", default=None)
_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
_BAR: ContextVar[Any] = ContextVar("bar", default=None)
"""The bar that is shown: there is one at a time, and what runs within it is told beside it."""


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


class Bar(Protocol):
    """What is moved on."""

    total: Any

    def update(self, n: int = 1) -> object:
        """Move on by some units."""


@dataclass
class _Beside:
    """Progress within what another bar shows, in words beside that bar."""

    bar: Any
    title: str
    total: int
    done: int = 0

    def update(self, n: int = 1) -> None:
        """Move on by some units."""
        self.done += n
        self.bar.set_postfix_str(f"{self.title} {self.done}/{self.total}")


@contextmanager
def progress_bar(title: str, total: int, show: bool, unit: str = "sample") -> Iterator[Bar]:
    """Show a bar while the context lasts; within another one, words beside that.

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
    Bar
        To be moved on with ``update(n)``.
    """
    show = show and not _QUIET.get()
    outer = _BAR.get()
    if show and outer is not None:
        yield _Beside(outer, title, total)
        outer.set_postfix_str("")
        return
    with tqdm(desc=title, total=total, unit=unit, disable=not show, leave=False, dynamic_ncols=True) as bar:
        token = _BAR.set(bar if show else None)
        try:
            yield bar
        finally:
            _BAR.reset(token)


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

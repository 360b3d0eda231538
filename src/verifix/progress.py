"""Progress with an estimate, on stderr."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

from verifix.errors import printable

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # without ipywidgets, a notebook shows bars of text: that is no fault
    from tqdm.auto import tqdm

_KEPT: ContextVar[list[str] | None] = ContextVar("kept", default=None)
_QUIET: ContextVar[bool] = ContextVar("quiet", default=False)
_UNTOLD: ContextVar[bool] = ContextVar("untold", default=False)
_WORK: ContextVar[Work | None] = ContextVar("work", default=None)
_PART: ContextVar[_Part | None] = ContextVar("part", default=None)

TRUST = 0.1
"""What the first estimate weighs beside what the parts that are over took, as a share of the whole."""


@contextmanager
def _set(variable: ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextmanager
def quiet(*, on: bool) -> Iterator[None]:
    """Show nothing while the context lasts, if that is on: notes are kept all the same; see `notes_kept`."""
    with _set(_QUIET, on or _QUIET.get()):
        yield


@contextmanager
def untold() -> Iterator[None]:
    """Write no lines beside the bar while the context lasts."""
    with _set(_UNTOLD, True):
        yield


def tell(line: str, show: bool) -> None:
    """Write a line on stderr, above the bar, if anything is to be shown."""
    if show and not _QUIET.get() and not _UNTOLD.get():
        _write(printable(line))


def _write(line: str) -> None:
    """Write a line on stderr, which no bar overwrites."""
    with tqdm.external_write_mode(file=sys.stderr):
        sys.stderr.write(f"{line}\n")


class Bar(Protocol):
    """What is moved on."""

    total: Any

    def update(self, n: int = 1) -> object:
        """Move on by some units."""


class Work:
    """All that one call does, of which one bar tells.

    Its length is time: what has passed, and what is left. That is foreseen part by part, and corrected by what the
    parts that are over took. Before anything is foreseen, the bar only says what is being done.

    Parameters
    ----------
    draw
        Draws the bar, of 100 units, once there is something to show; None to show nothing.

    Attributes
    ----------
    times
        What is known about how long parts take, for work that consists of the same ones.
    later
        Seconds that what follows the choice of a correction takes, from the seconds of that choice and of what went
        before it.
    """

    def __init__(self, draw: Callable[[], Any] | None, later: Callable[[float, float], float] | None = None) -> None:
        self._draw, self.later, self.times = draw, later, dict[Any, float]()
        self._bar: Any = None
        self._begun = self._since = time.perf_counter()
        self._ahead: list[float] = []
        self._over = self._took = 0.0
        self._trust = TRUST

    @property
    def shown(self) -> bool:
        """Whether anybody sees it."""
        return self._draw is not None

    @property
    def elapsed(self) -> float:
        """Seconds since it began."""
        return time.perf_counter() - self._begun

    def foresee(self, parts: Sequence[float], *, known: bool = True) -> None:
        """Say how long each part that lies ahead is expected to take, in their order.

        Parameters
        ----------
        parts
            In seconds, if `known`; else in any unit, whose length shows with the first part.
        known
            Whether anything is known of it.
        """
        self._ahead, self._over, self._took = list(parts), 0.0, 0.0
        self._trust = TRUST if known else 0.0
        self._since = time.perf_counter()

    def passed(self, parts: int) -> None:
        """Note that parts are over."""
        now = time.perf_counter()
        self._over += sum(self._ahead[:parts])
        self._took += now - self._since
        self._ahead, self._since = self._ahead[parts:], now

    @property
    def left(self) -> float | None:
        """About how many seconds are left; None if that is not known."""
        known = self._trust * (self._over + sum(self._ahead))
        if not self._ahead or not self._over + known:
            return None
        current, *others = self._ahead
        pace = (self._took + known) / (self._over + known)
        return pace * sum(others) + max(pace * current - (time.perf_counter() - self._since), 0.0)

    def show(self, words: str) -> None:
        """Show what is being done, and what is left."""
        if self._draw is None:
            return
        self._bar = self._bar or self._draw()
        left = self.left
        if left is not None:
            share = 100 * self.elapsed / (self.elapsed + left)
            words = f"about {duration(left)} left, {words}"
            self._bar.n = max(self._bar.n, min(share, 99.0))
        self._bar.set_postfix_str(words, refresh=False)
        self._bar.update(0)


@contextmanager
def one_bar(title: str, show: bool, later: Callable[[float, float], float] | None = None) -> Iterator[Work]:
    """Show one bar for all that happens while the context lasts; within another one, that one.

    Parameters
    ----------
    title
        What is being done.
    show
        Whether to show anything.
    later
        See `Work`.

    Yields
    ------
    Work
        To be told what is foreseen.
    """
    work = _WORK.get()
    if work is not None:
        yield work
        return
    with ExitStack() as stack:

        def draw() -> Any:
            shape = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}"
            return stack.enter_context(tqdm(desc=title, total=100, bar_format=shape, leave=False, dynamic_ncols=True))

        work = Work(draw if show and not _QUIET.get() else None, later)
        stack.enter_context(_set(_WORK, work))
        yield work


@dataclass
class _Part:
    """Progress within some work, in words beside its bar."""

    work: Work
    title: str
    total: int
    foreseen: bool
    around: _Part | None
    done: int = 0

    def update(self, n: int = 1) -> None:
        """Move on by some units."""
        self.done += n
        if self.foreseen:
            self.work.passed(n)
        self.work.show(self.words)

    @property
    def words(self) -> str:
        """What is being done, from the whole to this."""
        own = f"{self.title} {self.done}/{self.total}"
        return own if self.around is None else f"{self.around.words}, {own}"


@contextmanager
def progress_bar(title: str, total: int, show: bool, unit: str = "sample", *, foreseen: bool = False) -> Iterator[Bar]:
    """Show a bar while the context lasts; within `one_bar`, words beside that.

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
    foreseen
        Whether its units are the parts that the work around it has foreseen; see `Work.foresee`.

    Yields
    ------
    Bar
        To be moved on with ``update(n)``.
    """
    work = _WORK.get()
    if work is not None and work.shown and show:
        part = _Part(work, title, total, foreseen, _PART.get())
        work.show(part.words)
        with _set(_PART, part):
            yield part
        return
    hidden = not show or _QUIET.get() or work is not None
    with tqdm(desc=title, total=total, unit=unit, disable=hidden, leave=False, dynamic_ncols=True) as bar:
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
        _write(f"verifix: note: {printable(line)}")


@contextmanager
def notes_kept() -> Iterator[list[str]]:
    """Keep the notes that are written while the context lasts, for the summary and the result.

    Yields
    ------
    list of str
        The notes, each as a sentence.
    """
    kept: list[str] = []
    with _set(_KEPT, kept):
        yield kept


def duration(seconds: float) -> str:
    """Write a time out for reading."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"

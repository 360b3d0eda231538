"""Standard output is for results: everything else that is written there during the work goes to stderr."""

from __future__ import annotations

import ctypes
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import partial
from typing import TextIO

from verifix.errors import OutputError, one_line


class _Heedless(io.TextIOWrapper):
    """Standard error that loses messages instead of ending the work, once nobody reads it."""

    def write(self, text: str) -> int:
        with nobody_reads(2):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with nobody_reads(2):
            super().flush()


@contextmanager
def nobody_reads(descriptor: int, *, ours: bool = True) -> Iterator[None]:
    """Bear it that the reader of a stream has gone, as behind ``| head``.

    Parameters
    ----------
    descriptor
        Its number. What else is written there is lost without a word, at the end of Python as well.
    ours
        Whether the descriptor may be changed for that.

    Yields
    ------
    None
    """
    try:
        yield
    except BrokenPipeError:
        if ours:
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


def prepare_streams(*, ours: bool) -> None:
    """Make standard output and standard error writable, whatever the caller has made of them.

    Parameters
    ----------
    ours
        Whether the process is ours alone, so that its descriptors may be changed.
    """
    if ours:  # a closed one would be the number of the next file, and what is printed would end up in that
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            os.set_inheritable(number, True)
        os.close(number)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - it stays open
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that lacks a character must not cost the result
    if ours and isinstance(sys.stderr, io.TextIOWrapper) and sys.stderr is sys.__stderr__:
        sys.stderr = _Heedless(sys.stderr.buffer, sys.stderr.encoding, "replace", line_buffering=True)


@contextmanager
def diverted(*, for_good: bool) -> Iterator[Callable[[str], None]]:
    """Send to stderr what Python, C and child processes write to standard output.

    Parameters
    ----------
    for_good
        Whether it stays so, because the process ends soon; else until the context ends.

    Yields
    ------
    callable
        Writes a text to the real standard output.
    """
    out = sys.stdout
    _flush()
    with redirect_stdout(sys.stderr):
        kept = _exchange()
        try:
            yield partial(_say, out, kept)
        finally:
            _flush()
            if kept is not None and not for_good:
                os.dup2(kept, 1)
            if kept is not None:
                os.close(kept)


def _exchange() -> int | None:
    """Make standard output the same as stderr, and return a descriptor of what it was; None if there is none."""
    try:
        kept = os.dup(1)
    except OSError:
        return None
    try:
        os.dup2(2, 1)
    except OSError:
        os.close(kept)
        return None
    return kept


def _flush() -> None:
    """Write out what Python and C still hold for standard output, so that it goes where it was meant to go."""
    with suppress(OSError, ValueError, AttributeError):
        sys.__stdout__.flush()  # type: ignore[union-attr]
    with suppress(OSError, AttributeError, TypeError):  # Windows has no such library
        ctypes.CDLL(None).fflush(None)


def _say(out: TextIO, kept: int | None, text: str) -> None:
    """Write a result to standard output. That nobody reads it is no fault: files and exit code tell the same."""
    try:
        with suppress(BrokenPipeError):
            if kept is None or out is not sys.__stdout__:
                out.write(text)
                out.flush()
                return
            with open(kept, "w", encoding=out.encoding, errors="replace", closefd=False) as file:
                file.write(text)
    except OSError as error:
        raise OutputError(
            f"the result cannot be written to stdout ({one_line(error)}); send it elsewhere. Files of this run are "
            "complete"
        ) from None

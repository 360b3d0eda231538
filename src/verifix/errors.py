"""What goes wrong in a user's hands: one line each, with the exit code the command line gives it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
"""Control characters, and the signs that picture them."""

_STEERING = re.compile("[\x80-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Further control characters, those that turn the direction of text or break lines, and halves of characters."""


class VerifixError(ValueError):
    """Base of every error a user can cause; its text says what came, what is allowed and what to do next."""

    exit_code = 2


class UsageError(VerifixError):
    """An argument, a pattern or a path that cannot be used as given."""


class NoLayersError(VerifixError):
    """The model has no layer that can be corrected."""

    exit_code = 4


class DataError(VerifixError):
    """Data and model do not fit: labels, shapes, class counts, or a NaN or Inf on the way."""

    exit_code = 5


class OutputError(VerifixError):
    """A file that could not be written."""

    exit_code = 1


class CheckpointError(VerifixError):
    """A checkpoint, moments or correction file that does not fit the model it is meant for."""

    exit_code = 5


class AmbiguousBatchError(DataError):
    """A padded batch with as many samples as tokens; other batches of the same samples can be masked."""


def one_line(error: BaseException | str, most: int | None = None) -> str:
    """Return the text of an error on one line, cut after `most` characters; its type if it has no text."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def first_of(parts: Iterable[object], most: int = 3) -> str:
    """Return the first ones with commas between, and "…" if there are more."""
    every = [str(part) for part in parts]
    return ", ".join(every[:most]) + ", …" * (len(every) > most)


def did_you_mean(word: object, allowed: Iterable[str]) -> str:
    """Return a question after what is nearest to a word, as the end of a message; empty if nothing is near."""
    near = difflib.get_close_matches(str(word), [str(each) for each in allowed], 1)
    return f"; did you mean {near[0]!r}?" if near else ""


def printable(text: object, *, one_line: bool = False) -> str:
    """Return a text that a terminal shows as it is, whatever names from files stand in it.

    Parameters
    ----------
    text
        The text.
    one_line
        Whether line breaks are replaced as well: for a name, which could otherwise begin a line of its own.

    Returns
    -------
    str
        Control characters are pictured (␛), what only steers is replaced.
    """
    shown = _STEERING.sub("\ufffd", str(text).translate(CONTROLS))
    return shown.replace("\n", "␊") if one_line else shown

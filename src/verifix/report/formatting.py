"""Numbers in words."""

from __future__ import annotations

import re
from datetime import datetime

from verifix.errors import CONTROLS
from verifix.evaluation import comparison
from verifix.progress import duration

NOTHING = "–"
"""What stands for a number that is not known."""

MONTHS = (
    *("January", "February", "March", "April", "May", "June", "July"),
    *("August", "September", "October", "November", "December"),
)
"""In English, whatever the locale is."""

LONGEST_NAME = 300
"""Characters of a name that are shown; file systems allow 255."""


def printable(value: object) -> str:
    """Return a text for a page, which isolates directions itself: control characters pictured, non-characters gone."""
    text = str(value).translate(CONTROLS)
    return re.sub("[\x80-\x9f\ud800-\udfff]", "\ufffd", text)


def shortened(text: str, longest: int = LONGEST_NAME) -> str:
    """Leave out the middle of a text that is longer than `longest` characters."""
    if len(text) <= longest:
        return text
    half = (longest - 1) // 2
    return f"{text[:half]}…{text[-half:]}"


def count(number: float | None) -> str:
    """Write a whole number out: 1,000."""
    return NOTHING if number is None else f"{number:,.0f}"


def percent(number: float | None, digits: int = 1) -> str:
    """Write a percentage out: 88.2%."""
    return NOTHING if number is None else f"{number:.{digits}f}%"


def share(number: float | None) -> str:
    """Write a share of 0 to 1 as a whole percentage: 92%."""
    return NOTHING if number is None else f"{100 * number:.0f}%"


def signed(number: float | None, digits: int = 1) -> str:
    """Write a difference out, with its sign: +4.9."""
    return NOTHING if number is None else comparison.signed(number, digits)


def decimal(number: float | None, digits: int = 4) -> str:
    """Write a number with so many digits after the point."""
    return NOTHING if number is None else f"{number:.{digits}f}".replace("-", "−")


def probability(number: float | None) -> str:
    """Write a p-value out: 0.0031."""
    if number is None:
        return NOTHING
    return "below 0.0001" if number < 1e-4 else f"{number:.2g}"


def time(seconds: float | None) -> str:
    """Write a time out."""
    if seconds is None:
        return NOTHING
    return f"{seconds:.1f} s" if seconds < 10 else duration(seconds)


def size(number: float | None) -> str:
    """Write bytes out: 6.0 GB."""
    if number is None:
        return NOTHING
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} GB"


def plural(number: int, noun: str) -> str:
    """Write a count with its noun: 1 class, 3 classes."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number:,} {noun}{ending}"


def day(moment: str | None) -> str | None:
    """Write a moment of ISO 8601 out as a date: 1 December 2026; None if it is none."""
    try:
        date = datetime.fromisoformat(moment or "")
    except ValueError:
        return None
    return f"{date.day} {MONTHS[date.month - 1]} {date.year}"

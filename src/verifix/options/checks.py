"""What single settings must be, and how texts are read as settings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from verifix.errors import UsageError


def whole(value: object) -> bool:
    """Whether a value is a whole number, which True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def check_seed(seed: object) -> None:
    """Check a seed.

    Parameters
    ----------
    seed
        The seed.

    Raises
    ------
    UsageError
        If it is no whole number that fits.
    """
    if not whole(seed) or not 0 <= seed < 2**32:  # type: ignore[operator]
        raise UsageError(f"seed is {seed!r}; it must be a whole number from 0 to 4294967295")


def check_limit(limit: object) -> None:
    """Refuse a limit that is neither None nor a whole number of 1 or more."""
    if limit is not None and (not whole(limit) or limit < 1):  # type: ignore[operator]
        raise UsageError(f"limit is {limit!r}; it must be a whole number of samples, 1 or more")


def patterns(value: Sequence[str] | None) -> list[str] | None:
    """Return patterns as a list; a bare text, which is a sequence too, stays as it is and is refused later."""
    return value if value is None or isinstance(value, str) else list(value)  # type: ignore[return-value]


def split_list(value: list[str] | str | None) -> list[str] | None:
    """Split a text at its commas; a list or None stays as it is."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def names_in_file(path: str, flag: str = "--classes") -> list[str] | None:
    """Return the lines of a file of class names or shares, or None if the text is a list of them itself."""
    if Path(path).is_file():
        try:
            return [line.strip() for line in Path(path).read_text("utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{path} cannot be read for {flag} ({error}); write UTF-8, one class per line") from None
    if path.endswith(".txt"):
        raise UsageError(f"{path} does not exist; {flag} takes a list separated by commas, or a file of it")
    return None


def numbers(name: str, value: list[float] | str | None) -> list[float]:
    """Return a list of numbers, which may be given as a text with commas; None is an empty one."""
    try:
        found = [float(part) for part in (split_list(value) if isinstance(value, str) else value) or []]
    except (TypeError, ValueError):
        found = [math.nan]
    if not all(math.isfinite(number) for number in found):
        raise UsageError(f"{name} is {value!r}; give numbers separated by commas, such as 0.491,0.482,0.447")
    return found

"""Count and name what is not read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

from verifix.progress import note

MOST_SUFFIXES = 5


def note_left_out(left: Sequence[str], source: str, why: str) -> None:
    """Write a note on files that are left out, if there are any: how many, their suffixes, and the first name.

    Parameters
    ----------
    left
        Their names, in order.
    source
        What they are files of.
    why
        What sets them apart, such as "in no class folder".
    """
    if not left:
        return
    suffixes = Counter(PurePath(name).suffix or "no suffix" for name in left)
    kinds = [f"{count} {suffix}" for suffix, count in suffixes.most_common(MOST_SUFFIXES)]
    more = ["…"] if len(suffixes) > MOST_SUFFIXES else []
    files = f"{len(left)} file{'s' * (len(left) > 1)}"
    note(f"{source}: left out {files} {why} ({', '.join(kinds + more)}); the first is {left[0]}")

"""What a user should know about the data but need not act on: one line each, on stderr."""

from __future__ import annotations

import sys


def note(text: str) -> None:
    """Write one line to stderr, where logs belong.

    Parameters
    ----------
    text
        What to say; line breaks become spaces.
    """
    sys.stderr.write(f"verifix: note: {' '.join(text.split())}\n")

"""What is left of a budget while a stage's strength is chosen: measured on the stage itself, not foreseen."""

from __future__ import annotations

import math
import time

from verifix.model import ranks


class OutOfTimeError(Exception):
    """A stage takes longer than what is left; `seconds` is what it was expected to take."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class Stopwatch:
    """Times the fits of a stage, and stops them once it is clear that they take too long.

    Parameters
    ----------
    left
        Seconds that choosing may take.
    fits
        How many fits choosing needs.
    first
        After how many of them what it takes is foreseen: those of the first fold, which hold a share of what all
        strengths have in common.

    Attributes
    ----------
    expected
        Seconds that choosing was expected to take then; None before.
    """

    def __init__(self, left: float, fits: int, first: int) -> None:
        self.left, self.fits, self.first = left, fits, first
        self.expected: float | None = None
        self._begun, self._done = time.perf_counter(), 0

    def fitted(self, count: int = 1) -> None:
        """Note one more fit, or several that need not be made.

        Raises
        ------
        OutOfTimeError
            If nothing is left, or what is left will not suffice by the time that the first fold took.
        """
        self._done += count
        elapsed = time.perf_counter() - self._begun
        if math.isfinite(self.left):  # all processes stop at once, by the clock of the first
            elapsed = ranks.from_first(elapsed)
        expected = elapsed * max(self.fits / self._done, 1.0)
        if self.expected is None and self._done >= self.first:
            self.expected = expected
            if expected > self.left:
                raise OutOfTimeError(expected)
        if elapsed > self.left:
            raise OutOfTimeError(expected)

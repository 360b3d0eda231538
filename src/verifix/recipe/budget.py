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
        How many fits choosing needs, unless some are spared.

    Attributes
    ----------
    expected
        Seconds that choosing was expected to take by the end of the first fold, whose fits hold a share of what all
        strengths have in common; None before.
    """

    def __init__(self, left: float, fits: int) -> None:
        self.left, self.fits = left, fits
        self.expected: float | None = None
        self._begun, self._done = time.perf_counter(), 0

    def fitted(self) -> None:
        """Note one more fit.

        Raises
        ------
        OutOfTimeError
            If nothing is left.
        """
        self._done += 1
        elapsed = self._elapsed()
        if elapsed > self.left:
            raise OutOfTimeError(self._foreseen(elapsed))

    def folded(self, spared: int) -> None:
        """Note the end of a fold, and how many fits are not needed any more.

        Raises
        ------
        OutOfTimeError
            If it is the first one, and what is left will not suffice by the time that it took.
        """
        self.fits -= spared
        if self.expected is None:
            self.expected = self._foreseen(self._elapsed())
            if self.expected > self.left:
                raise OutOfTimeError(self.expected)

    def _elapsed(self) -> float:
        elapsed = time.perf_counter() - self._begun
        return ranks.from_first(elapsed) if math.isfinite(self.left) else elapsed  # all processes stop at once

    def _foreseen(self, elapsed: float) -> float:
        return elapsed * max(self.fits / self._done, 1.0)

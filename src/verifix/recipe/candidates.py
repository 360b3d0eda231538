"""The strengths that a stage can be tried with."""

from __future__ import annotations

import math
from dataclasses import dataclass

Strength = float | tuple[float, ...]
"""How much of a stage is applied: one number, or several, such as a rate and a number of epochs."""


@dataclass(frozen=True)
class Grid:
    """Where to look: every decade from `lowest` to `highest`, then finer around the best.

    Attributes
    ----------
    lowest, highest
        Ends of the coarse grid; powers of ten.
    refinements
        Steps of the refinement, as fractions of a decade: each tries one neighbour on either side of the best so
        far that has not been tried, the last one only the better side.
    """

    lowest: float
    highest: float
    refinements: tuple[float, ...] = (0.5, 0.25)

    @property
    def coarse(self) -> list[float]:
        """The decades."""
        low, high = round(math.log10(self.lowest)), round(math.log10(self.highest))
        return [10.0**exponent for exponent in range(low, high + 1)]

    @property
    def rounds(self) -> list[int]:
        """How many strengths each round tries."""
        return [len(self.coarse), *(2 for _ in self.refinements[:-1]), *(1 for _ in self.refinements[-1:])]


@dataclass(frozen=True)
class Listed:
    """A few strengths, all tried at once.

    Attributes
    ----------
    strengths
        The strengths.
    kind
        Which numbers of them say how a fit is made that others share: after the first comparison, only the kind with
        the best strength goes on.
    """

    strengths: tuple[Strength, ...]
    kind: tuple[int, ...] = ()

    @property
    def rounds(self) -> list[int]:
        """How many strengths each round tries."""
        return [len(self.strengths)]


Candidates = Grid | Listed

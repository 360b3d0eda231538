"""What a demonstration reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """One run of a demonstration.

    Attributes
    ----------
    story
        What was done, in a sentence or two.
    memorised
        Percent of the noisy training labels that the trained network reproduces.
    before, after
        Percent right on samples that neither training nor the correction used.
    alpha
        The chosen strength of the projection; None if no change won.
    stages
        The stages that were kept, with their strengths, for reading.
    written
        Names of the files that were written.
    """

    story: str
    memorised: float
    before: float
    after: float
    alpha: float | None
    stages: str
    written: tuple[str, ...] = ()

    def scores(self) -> dict[str, Any]:
        """Return the figures as plain data."""
        gain = self.after - self.before
        return {"before": self.before, "after": self.after, "gain": gain, "alpha": self.alpha}

"""Choose a strength from cross-fitted scores, and do no harm: no change wins unless it is clearly beaten.

Nothing here knows what a strength does. A candidate is a number and the scores that held-out samples gave it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

SELECTION_NOTE = "selection score: it chose the strength, so it overstates the gain"


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


@dataclass(frozen=True)
class Scores:
    """What held-out samples gave one candidate: `losses` ``[n]`` (lower is better) and a mean `score` (higher is)."""

    losses: Tensor
    score: float


@dataclass(frozen=True)
class Point:
    """One point of the strength curve; a selection score, not a gain.

    Attributes
    ----------
    strength
        The strength, or None for no change.
    loss
        Mean cross-fitted loss.
    loss_gain, standard_error
        Mean of (loss without change − loss), and the paired standard error of that mean.
    score
        Mean cross-fitted score; a fraction right by default.
    """

    strength: float | None
    loss: float
    loss_gain: float
    standard_error: float
    score: float


@dataclass(frozen=True)
class Choice:
    """A chosen strength and everything it was chosen from.

    Attributes
    ----------
    strength
        The choice; None if no change won.
    points
        The curve: first no change, then the strengths in ascending order. Empty if the strength was given.
    reason
        Why, in one sentence.
    """

    strength: float | None
    points: tuple[Point, ...]
    reason: str

    def as_dict(self) -> dict[str, object]:
        """Return the choice as plain data, labelled for what its scores are."""
        return {
            "strength": self.strength,
            "reason": self.reason,
            "note": SELECTION_NOTE,
            "points": [asdict(point) for point in self.points],
        }


def given(strength: float) -> Choice:
    """Wrap a strength that the user set."""
    return Choice(strength, (), "set by the user")


def choose(baseline: Scores, evaluate: Callable[[Sequence[float]], Sequence[Scores]], grid: Grid) -> Choice:
    """Choose a strength, coarse to fine.

    Parameters
    ----------
    baseline
        Scores of no change, on the same samples in the same order.
    evaluate
        Strengths → their cross-fitted scores; called once for the coarse grid and once per refinement.
    grid
        The strengths to try.

    Returns
    -------
    Choice
        The strength with the smallest mean loss, if its losses are below those of no change by more than one
        paired standard error and its score is not below that of no change; else no change.
    """
    tried: dict[float, Scores] = {}

    def loss_of(strength: float) -> float:
        return float(tried[strength].losses.mean())

    def try_all(strengths: Sequence[float]) -> None:
        tried.update(zip(strengths, evaluate(strengths), strict=True))

    try_all(grid.coarse)
    for step in grid.refinements:
        best = min(tried, key=loss_of)
        try_all(_neighbours(best, step, tried, loss_of, last=step == grid.refinements[-1]))
    points = [_point(None, baseline, baseline)]
    points += [_point(strength, tried[strength], baseline) for strength in sorted(tried)]
    return _decide(points)


def _neighbours(
    best: float, step: float, tried: dict[float, Scores], loss_of: Callable[[float], float], last: bool
) -> list[float]:
    """Return the strengths `step` decades below and above the best; in the last round only towards the better side."""
    below, above = best * 10**-step, best * 10**step
    if not last:
        return [below, above]
    lower = max((s for s in tried if s < best), default=None)
    upper = min((s for s in tried if s > best), default=None)
    if lower is None or upper is None:
        return [below if lower is None else above]
    return [below if loss_of(lower) < loss_of(upper) else above]


def _point(strength: float | None, scores: Scores, baseline: Scores) -> Point:
    gains = baseline.losses - scores.losses
    error = float(gains.std(correction=1)) / math.sqrt(len(gains)) if len(gains) > 1 else math.inf
    return Point(strength, float(scores.losses.mean()), float(gains.mean()), error, scores.score)


def _decide(points: Sequence[Point]) -> Choice:
    """Let no change win unless the best strength beats it clearly in loss, and is not worse in score."""
    no_change, *candidates = points
    best = min(candidates, key=lambda point: point.loss)
    name, error = f"strength {best.strength:.4g}", f"standard error {best.standard_error:.4f}"
    scores = f"the score goes from {no_change.score:.4f} to {best.score:.4f}"
    if best.loss_gain <= 0:
        return Choice(None, tuple(points), "no change: no strength lowers the loss")
    lowers = f"{name} lowers the loss by {best.loss_gain:.4f} ({error})"
    if best.loss_gain <= best.standard_error:
        return Choice(None, tuple(points), f"no change: {lowers}, which is not clear enough")
    if best.score < no_change.score:
        return Choice(None, tuple(points), f"no change: {lowers}, but {scores}")
    return Choice(best.strength, tuple(points), f"{lowers}, {scores}")

"""Choose among whole paths of stages by their cross-fitted loss, and decide once whether the best one is worth it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import NormalDist
from typing import Any

from verifix.recipe.candidates import Strength
from verifix.recipe.decision import MINIMAL_GAIN, Choice, Point, lowers, scores, spelled

SURE = 1 / 2
"""How probable it has to be that a path lowers the loss; and its score may not be lower. See docs/stages.md for what it
accepts and refuses."""

SPREAD = 0.2
"""Before there are samples, it is as probable as not that there is nothing to gain; else gains in loss are taken to be
normal around 0 with this standard deviation, in nats per sample: what corrections bring to networks trained on wrong
labels, of either sign."""


@dataclass(frozen=True)
class Path:
    """One path: stages one after the other, cross-fitted as a whole.

    Attributes
    ----------
    strengths
        Of each stage, in order; None where the stage did best without a change. Empty for no stage at all.
    point
        What held-out samples gave, beside those of no change; None if it was not tried.
    reason
        Why it was not tried, or left; empty if it was tried whole.
    seconds
        What trying its last stage took; None if that is not known.
    """

    strengths: Mapping[str, Strength | None] = field(default_factory=dict)
    point: Point | None = None
    reason: str = ""
    seconds: float | None = None

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of its stages."""
        return tuple(self.strengths)

    @property
    def name(self) -> str:
        """The stages that change something, for reading."""
        return " → ".join(stage for stage, strength in self.strengths.items() if strength is not None) or "no change"

    def as_dict(self) -> dict[str, Any]:
        """Return the path as plain data."""
        return {
            "strengths": dict(self.strengths),
            "point": None if self.point is None else asdict(self.point),
            "reason": self.reason,
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Path:
        """Undo `as_dict`."""
        strengths = {stage: tuple(s) if isinstance(s, list) else s for stage, s in data["strengths"].items()}
        return cls(
            strengths, None if data["point"] is None else Point(**data["point"]), data["reason"], data["seconds"]
        )


@dataclass(frozen=True)
class Decision:
    """Which path is taken.

    Attributes
    ----------
    path
        The one with the lowest loss; the first one, no change, if there is no other.
    taken
        Whether it is better than no change.
    reason
        Why, in one sentence.
    """

    path: Path
    taken: bool
    reason: str


def decide(paths: Sequence[Path]) -> Decision:
    """Take the path with the lowest loss if it is better than no change.

    Parameters
    ----------
    paths
        No change first, then what was tried.

    Returns
    -------
    Decision
        The best path is taken if its loss is lower with a probability of at least `SURE`, and its score is not lower.
        The gain is shrunk towards no change: see `probability`.
    """
    none, *others = [path for path in paths if path.point is not None]
    if not others:
        tried = any(not path.reason.startswith("not tried") for path in paths[1:])
        why = "no path lowers the loss" if tried else "no path was tried to its end"
        return Decision(none, taken=False, reason=f"no change: {why}")
    best = min(others, key=_loss)
    point, before = best.point, none.point
    assert point is not None and before is not None  # noqa: S101, PT018 - those without were left out
    if not any(strength is not None for strength in best.strengths.values()) or point.loss_gain <= MINIMAL_GAIN:
        return Decision(best, taken=False, reason="no change: no path lowers the loss")
    found = f"{best.name} {lowers(point)}, {scores(point, before)}"
    sure = probability(point.loss_gain, point.standard_error)
    if sure < SURE:
        return Decision(best, taken=False, reason=f"no change: {found}; that the loss falls is {sure:.0%} probable")
    if point.score < before.score:
        return Decision(best, taken=False, reason=f"no change: {found}")
    return Decision(best, taken=True, reason=found)


def probability(gain: float, error: float) -> float:
    """Return how probable it is that a true gain is above 0.

    Parameters
    ----------
    gain, error
        The mean gain g of some samples, and its standard error s.

    Returns
    -------
    float
        B / (1 + B) · Φ(z √w), where z = g / s, w = τ² / (τ² + s²) with τ = `SPREAD`, and B = √(1 − w) exp(z² w / 2) is
        the Bayes factor of a normal gain against none (Jeffreys, *Theory of Probability*, 1961, chapter 5). With labels
        that mean nothing, the best of many paths gains a little, with a small s: a gain of two standard errors that is
        far below τ speaks for no gain.
    """
    if error == 0:
        return float(gain > 0)
    if math.isinf(error):
        return 0.25
    both = math.hypot(SPREAD, error)
    shrunk = gain / error * SPREAD / both  # z √w
    factor = error / both * math.exp(min(shrunk**2 / 2, 700.0))  # not 1 − w: small errors would be lost
    return factor / (1 + factor) * NormalDist().cdf(shrunk)


def withheld(choices: Mapping[str, Choice], reason: str) -> dict[str, Choice]:
    """Return the choices of a path that is not taken: no strength, and why."""
    return {
        stage: choice
        if choice.strength is None or not choice.points
        else replace(choice, strength=None, reason=f"not applied, best at {spelled(choice.strength)}: {reason}")
        for stage, choice in choices.items()
    }


def _loss(path: Path) -> float:
    return math.inf if path.point is None else path.point.loss

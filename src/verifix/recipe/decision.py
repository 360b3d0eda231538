"""Choose among strengths by their cross-fitted scores: no change wins unless a strength is clearly better."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from verifix.recipe.candidates import Candidates, Listed, Strength

SELECTION_NOTE = "selection score: it chose the strength, so it overstates the gain"

MINIMAL_GAIN = 1e-4
"""Nats per sample. A smaller gain is not worth a change of weights, however sure it is."""

TOLERATED, SURENESS = 0.005, 1.645
"""How far the score may fall, half a point of accuracy, and how many standard errors below its estimate must be above
that: 95%, one-sided. It is the usual test of "not worse by more than".

A head fitted to 80 samples can lower the loss clearly, by being less sure of itself, and get fewer answers right. That
its score is no worse on the 20 left out shows little: then this rule leaves it out, and with a thousand it does not.
"""


BEHIND = 2.0
"""By how many standard errors a strength must lose on the first folds to be dropped."""


@dataclass(frozen=True)
class Scores:
    """What held-out samples gave one candidate.

    Attributes
    ----------
    losses
        ``[n]``, lower is better.
    score
        The mean score, higher is better.
    values
        Each sample's score ``[n]``, from 0 to 1; None if there is only the mean.
    groups
        int64 ``[n]``: which samples are not independent; None if all are.
    """

    losses: Tensor
    score: float
    values: Tensor | None = None
    groups: Tensor | None = None


@dataclass(frozen=True)
class Raced:
    """What became of some strengths that were tried fold by fold.

    Attributes
    ----------
    scores
        Of those that were tried in all folds.
    lost
        Of those that were dropped after some, by how many nats per sample they lost to the best one there.
    """

    scores: Mapping[Strength, Scores]
    lost: Mapping[Strength, float] = field(default_factory=dict)


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
        Mean of (loss without change − loss), and the paired standard error of that mean, which counts copies and
        samples of one group as one (Cochran, *Sampling Techniques*, 1977, chapter 9A: clusters of unequal size).
    score
        Mean cross-fitted score; a fraction right by default.
    score_error
        The paired standard error of the gain in score, with one sample more that is won and one that is lost (Agresti
        and Min, Statistics in Medicine 24:729, 2005): a few samples without a change prove nothing. 0 if the score is
        not known sample by sample.
    """

    strength: Strength | None
    loss: float
    loss_gain: float
    standard_error: float
    score: float
    score_error: float = 0.0


@dataclass(frozen=True)
class Choice:
    """A chosen strength and everything it was chosen from.

    Attributes
    ----------
    strength
        The choice; None if no change won.
    points
        The curve: first no change, then the strengths that were tried in all folds, in ascending order. Empty if the
        strength was given, or the stage was not tried.
    reason
        Why, in one sentence.
    layers
        What the chosen strength means for each layer, by parameter name: names of numbers → numbers. Empty if the
        stage says nothing about layers.
    estimated, seconds
        What the stage was expected to take, and what it took, in seconds; None if that is not known.
    about
        What the stage does, in one sentence; empty if that is not known.
    dropped
        Strengths that lost clearly on the first folds, and were not tried in the others; ascending.
    note
        What the scores are and are not.
    """

    strength: Strength | None
    points: tuple[Point, ...]
    reason: str
    layers: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    estimated: float | None = None
    seconds: float | None = None
    about: str = ""
    dropped: tuple[Strength, ...] = ()
    note: str | None = SELECTION_NOTE

    def as_dict(self) -> dict[str, object]:
        """Return the choice as plain data, labelled for what its scores are."""
        return {
            "strength": self.strength,
            "reason": self.reason,
            "note": self.note,
            "points": [asdict(point) for point in self.points],
            "layers": {name: dict(numbers) for name, numbers in self.layers.items()},
            "estimated": self.estimated,
            "seconds": self.seconds,
            "about": self.about,
            "dropped": list(self.dropped),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Choice:
        """Undo `as_dict`."""
        points = tuple(Point(**point | {"strength": _strength(point["strength"])}) for point in data["points"])
        rest = {key: data[key] for key in ("reason", "layers", "estimated", "seconds", "note")}
        dropped: tuple[Any, ...] = tuple(map(_strength, data.get("dropped", ())))
        return cls(_strength(data["strength"]), points, about=data.get("about", ""), dropped=dropped, **rest)


def _strength(value: Any) -> Strength | None:
    return tuple(value) if isinstance(value, list) else value


def spelled(strength: Strength | None) -> str:
    """Write a strength out."""
    if strength is None:
        return "no change"
    numbers = strength if isinstance(strength, tuple) else (strength,)
    return " × ".join(f"{number:.4g}" for number in numbers)


def given(strength: Strength) -> Choice:
    """Wrap a strength that the user set."""
    return Choice(strength, (), "set by the user")


def not_tried(reason: str, estimated: float | None = None) -> Choice:
    """Wrap why a stage was left out."""
    return Choice(None, (), f"not tried: {reason}", estimated=estimated)


def choose(baseline: Scores, evaluate: Callable[[Sequence[Strength]], Raced], candidates: Candidates) -> Choice:
    """Choose a strength.

    Parameters
    ----------
    baseline
        Scores of no change, on the same samples in the same order.
    evaluate
        Strengths → their cross-fitted scores; called once for a list, and for a grid once for the decades and once
        per refinement.
    candidates
        The strengths to try.

    Returns
    -------
    Choice
        Of the strengths whose losses are below those of no change by more than one paired standard error, and by
        `MINIMAL_GAIN`, and whose score is not below that of no change, nor by more than `TOLERATED` if `SURENESS`
        paired standard errors are taken off, the one with the smallest mean loss; no change if there is none.
    """
    tried: dict[Any, Scores] = {}
    lost: dict[Any, float] = {}

    def try_all(strengths: Sequence[Strength]) -> None:
        raced = evaluate(strengths)
        tried.update(raced.scores)
        lost.update(raced.lost)

    def loss_of(strength: Strength) -> float:
        if strength in tried:
            return float(tried[strength].losses.mean())
        return min(float(scores.losses.mean()) for scores in (baseline, *tried.values())) + lost[strength]

    if isinstance(candidates, Listed):
        try_all(candidates.strengths)
    else:
        try_all(candidates.coarse)
        for step in candidates.refinements if tried else ():
            last, best = step == candidates.refinements[-1], min(tried, key=loss_of)
            try_all(_neighbours(best, step, [*tried, *lost], loss_of, last=last))
    points = [_point(None, baseline, baseline)]
    points += [_point(strength, tried[strength], baseline) for strength in sorted(tried)]
    choice, dropped = _decide(points), tuple(sorted(lost))
    if dropped and tried:
        choice = replace(choice, reason=f"{choice.reason}; {_dropped(dropped)}")
    return replace(choice, dropped=dropped)


def _dropped(strengths: Sequence[Strength]) -> str:
    were = "was" if len(strengths) == 1 else "were"
    return f"{', '.join(map(spelled, strengths))} {were} dropped after the first folds, losing clearly there"


def behind(
    losses: Mapping[Strength | None, Tensor], strengths: Sequence[Strength], groups: Tensor | None
) -> dict[Strength, float]:
    """Return the strengths that lose clearly, and by how much.

    Parameters
    ----------
    losses
        Of no change and of some strengths on the same samples, ``[n]`` each.
    strengths
        Those of them that may still be dropped.
    groups
        Which of the samples are not independent, int64 ``[n]``; None if all are.

    Returns
    -------
    dict
        Strength → nats per sample above the smallest mean loss, for those that are above it by more than `BEHIND`
        paired standard errors.
    """
    best = min(losses.values(), key=lambda loss: float(loss.mean()))
    gaps = {strength: losses[strength] - best for strength in strengths}
    return {
        strength: float(gap.mean())
        for strength, gap in gaps.items()
        if float(gap.mean()) > BEHIND * _standard_error(gap, groups)
    }


def _neighbours(
    best: float, step: float, tried: Collection[float], loss_of: Callable[[float], float], last: bool
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


def _point(strength: Strength | None, scores: Scores, baseline: Scores) -> Point:
    gains, score_error, groups = baseline.losses - scores.losses, 0.0, baseline.groups
    if scores.values is not None and baseline.values is not None:
        score_error = _standard_error(scores.values - baseline.values, groups, [1.0, -1.0])
    error = _standard_error(gains, groups)
    return Point(strength, float(scores.losses.mean()), float(gains.mean()), error, scores.score, score_error)


def _standard_error(differences: Tensor, groups: Tensor | None, further: Sequence[float] = ()) -> float:
    """Return the standard error of a mean, by independent groups, with some further samples, or groups of mean size."""
    more = differences.new_tensor(further)
    if groups is None:
        every = torch.cat([differences, more])
        return float(every.std(correction=1)) / math.sqrt(len(every)) if len(every) > 1 else math.inf
    count = int(groups.max()) + 1
    sizes = torch.bincount(groups, minlength=count).to(differences.dtype)
    size = sizes.mean()
    sums = torch.cat([torch.zeros_like(sizes).index_add(0, groups, differences), size * more])
    sizes = torch.cat([sizes, size.expand(len(more))])
    n, total = len(sums), float(sizes.sum())
    rest = sums - sizes * (sums.sum() / total)
    return math.sqrt(float(rest.square().sum()) * n / (n - 1)) / total if n > 1 else math.inf


def _decide(points: Sequence[Point]) -> Choice:
    """Let no change win unless a strength beats it clearly in loss, and is not worse in score."""
    no_change, *candidates = points
    if not candidates:
        return Choice(None, tuple(points), "no change: every strength clearly raised the loss on the first folds")
    lower = [p for p in candidates if p.loss_gain > max(p.standard_error, MINIMAL_GAIN)]
    sure = [p for p in lower if p.score - no_change.score >= max(0.0, SURENESS * p.score_error - TOLERATED)]
    if sure:
        best = min(sure, key=lambda point: point.loss)
        return Choice(best.strength, tuple(points), f"{_lowers(best)}, {_scores(best, no_change)}")
    best = min(candidates, key=lambda point: point.loss)
    return Choice(None, tuple(points), f"no change: {_why_not(best, no_change)}")


def _why_not(best: Point, no_change: Point) -> str:
    if best.loss_gain <= 0:
        return "no strength lowers the loss"
    if best.loss_gain <= best.standard_error:
        return f"{_lowers(best)}, which is not a clear gain"
    if best.loss_gain <= MINIMAL_GAIN:
        return f"{_lowers(best)}, which is too small to matter"
    kept = "no strength that clearly lowers the loss clearly keeps the score"
    return f"{_lowers(best)}, but {_scores(best, no_change)}; {kept}"


def _lowers(point: Point) -> str:
    error = f"standard error {point.standard_error:.4f}"
    return f"strength {spelled(point.strength)} lowers the loss by {point.loss_gain:.4f} ({error})"


def _scores(point: Point, no_change: Point) -> str:
    error = f" (standard error {point.score_error:.4f})" if point.score_error else ""
    return f"the score goes from {no_change.score:.4f} to {point.score:.4f}{error}"

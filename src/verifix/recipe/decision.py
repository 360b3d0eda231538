"""Choose among the strengths of a stage by their cross-fitted loss: the lowest one wins."""

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
        Strengths that lost on the first folds, and were not tried in the others; ascending.
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

    @property
    def told(self) -> str:
        """The reason, and which strengths were dropped on the way to it."""
        if not self.dropped or len(self.points) < 2:  # the reason says it if all were
            return self.reason
        were = "was" if len(self.dropped) == 1 else "were"
        return (
            f"{self.reason}; {', '.join(map(spelled, self.dropped))} {were} dropped after the first folds, losing there"
        )

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


def given(strength: Strength | None) -> Choice:
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
        The strength with the smallest mean loss, or no change if that is not below it by `MINIMAL_GAIN`. Whether the
        whole path is worth a change is decided once, at its end; see `verifix.recipe.paths`.
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
    points = [point_of(None, baseline, baseline)]
    points += [point_of(strength, tried[strength], baseline) for strength in sorted(tried)]
    return replace(_decide(points), dropped=tuple(sorted(lost)))


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


def of_other_kinds(
    losses: Mapping[Strength | None, Tensor], strengths: Sequence[Strength], kind: Sequence[int]
) -> dict[Strength, float]:
    """Return the strengths that are not of the kind of the best one, and by how much they lose to it.

    Parameters
    ----------
    losses, strengths
        As in `behind`.
    kind
        See `Listed`.

    Returns
    -------
    dict
        Strength → nats per sample above the smallest mean loss.
    """
    means = {strength: float(losses[strength].mean()) for strength in strengths}
    best = min(means, key=means.__getitem__)
    return {s: mean - means[best] for s, mean in means.items() if _numbers(s, kind) != _numbers(best, kind)}


def _numbers(strength: Strength, places: Sequence[int]) -> list[float]:
    return [strength[place] for place in places] if isinstance(strength, tuple) else []


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


def point_of(strength: Strength | None, scores: Scores, baseline: Scores) -> Point:
    """Return what scores say beside those of no change."""
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
    """Take the lowest loss."""
    no_change, *candidates = points
    if not candidates:
        return Choice(None, tuple(points), "no change: every strength fell clearly behind on the first folds")
    best = min(candidates, key=lambda point: point.loss)
    if best.loss_gain <= MINIMAL_GAIN:
        return Choice(None, tuple(points), "no change: no strength lowers the loss")
    reason = f"strength {spelled(best.strength)} {lowers(best)}, {scores(best, no_change)}"
    return Choice(best.strength, tuple(points), reason)


def lowers(point: Point) -> str:
    """Say by how much the loss is lower."""
    error = f"standard error {point.standard_error:.4f}"
    return f"lowers the loss by {point.loss_gain:.4f} ({error})"


def scores(point: Point, no_change: Point) -> str:
    """Say what becomes of the score."""
    error = f" (standard error {point.score_error:.4f})" if point.score_error else ""
    return f"the score goes from {no_change.score:.4f} to {point.score:.4f}{error}"

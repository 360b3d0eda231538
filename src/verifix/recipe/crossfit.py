"""Cross-fitting: every verified sample is scored by a correction that was made without it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from verifix.losses import Score, apply_score, correct_or_not, tempered_cross_entropy
from verifix.model import ranks
from verifix.options import CorrectOptions
from verifix.progress import duration, progress_bar
from verifix.recipe.budget import OutOfTimeError, Stopwatch
from verifix.recipe.candidates import Candidates, Grid, Listed, Strength
from verifix.recipe.context import Context
from verifix.recipe.decision import Choice, Raced, Scores, behind, choose, given, not_tried, of_other_kinds
from verifix.recipe.trials import Trial, Trials, predict_in_shares

Rival = Tensor
"""What a path predicts for all samples of a context, each held out, ``[n, outputs]``."""

ENOUGH = 50
"""Held-out samples from which strengths are compared before all folds are through."""


@dataclass(frozen=True)
class Rules:
    """By what strengths are chosen.

    Attributes
    ----------
    options
        The settings of the correction.
    score, loss
        The user's own, or None; see `verifix.correct`.
    """

    options: CorrectOptions
    score: Score | None = None
    loss: Score | None = None


def run_stage(
    trials: Trials, whole: Context, parts: Sequence[Context], rules: Rules, left: float, rival: Rival | None = None
) -> tuple[Choice, Tensor]:
    """Choose a stage's strength.

    Parameters
    ----------
    trials
        The stage.
    whole
        What is to be fitted on in the end; only its samples matter here.
    parts
        For each fold of `whole`, the context without it.
    rules
        By what to choose.
    left
        Seconds that choosing may take.
    rival
        Another path, if no stage follows: strengths that clearly lose to it on the first folds run no further.

    Returns
    -------
    choice : Choice
        The strength, and what it was chosen from.
    logits : Tensor
        What the parts predict with it for the samples that they lack, ``[n, outputs]`` in the order of the samples.
    """
    begun = time.perf_counter()
    choice = _choose(trials, whole, parts, rules, left, rival)
    tried = [trials[part] for part in parts]
    predict_in_shares(tried, [choice.strength])
    choice = replace(choice, seconds=time.perf_counter() - begun, about=trials.stage.about)
    return choice, HeldOut(whole, tried).logits(choice.strength)


def _choose(
    trials: Trials, whole: Context, parts: Sequence[Context], rules: Rules, left: float, rival: Rival | None
) -> Choice:
    """Choose a stage's strength, unless it is given, cannot run, or would take longer than what is left."""
    fixed = trials.stage.given(rules.options)
    if fixed is not None:
        return given(fixed)
    obstacle = ranks.from_first(trials[parts[0]].fitter.obstacle())
    if obstacle:
        return not_tried(obstacle)
    if left <= 0:
        return not_tried("nothing of the budget remains")
    candidates = trials[parts[0]].fitter.candidates()
    at_once = -(-len(parts) // ranks.size())
    watch = Stopwatch(left, at_once * sum(candidates.rounds))
    try:
        choice = choose_strength(trials, candidates, whole, parts, rules, watch, rival)
    except OutOfTimeError as late:
        return not_tried(
            f"it would take about {duration(late.seconds)}, but only {duration(left)} of the budget remained",
            late.seconds,
        )
    return replace(choice, estimated=watch.expected)


def choose_strength(
    trials: Trials,
    candidates: Candidates,
    whole: Context,
    parts: Sequence[Context],
    rules: Rules,
    watch: Stopwatch,
    rival: Rival | None = None,
) -> Choice:
    """Choose a stage's strength by cross-fitting: every sample is scored by a correction that never saw it."""
    tried = [trials[part] for part in parts]
    held_out, loss = HeldOut(whole, tried), rules.loss or tempered_cross_entropy
    finished: list[Strength | None] = []
    predict_in_shares(tried, [None])

    def scores(strength: Strength | None) -> Scores:
        return scores_of(whole, held_out.logits(strength), rules)

    def cross_fitted(strengths: Sequence[Strength]) -> Raced:
        with progress_bar(
            f"strength of {trials.stage.name}", len(parts) * len(strengths), rules.options.progress, unit="fit"
        ) as bar:
            lost = race(whole, tried, strengths, finished, loss, Meter(bar, watch), rival, candidates)
        left = [strength for strength in strengths if strength not in lost]
        finished.extend(left)
        return Raced({strength: scores(strength) for strength in left}, lost)

    return choose(scores(None), cross_fitted, candidates)


@dataclass(frozen=True)
class Meter:
    """Shows and times the fits of a stage."""

    bar: Any
    watch: Stopwatch

    def fitted(self) -> None:
        """Note one more fit."""
        self.bar.update()
        self.watch.fitted()

    def folded(self, lost: int, left: int) -> None:
        """Note the end of a fold, and how many strengths need not be fitted in how many folds that are left."""
        self.bar.update(lost * left)
        self.watch.folded(lost * -(-left // ranks.size()))


def scores_of(whole: Context, logits: Tensor, rules: Rules) -> Scores:
    """Return what logits ``[n, outputs]`` of the samples of a context, each held out, are worth."""
    labels, groups = whole.labels, whole.groups
    values = apply_score(rules.score or correct_or_not, logits, labels, "score", per_sample=False)
    losses = apply_score(rules.loss or tempered_cross_entropy, logits, labels, "loss", per_sample=True)
    return Scores(losses, float(values.mean()), values if values.ndim else None, groups)


def rows_outside(whole: Context, parts: Sequence[Context]) -> dict[int, int]:
    """Return which samples of a context some parts lack, in its order, each with its row in all that these predict."""
    place = {i: row for row, i in enumerate(i for part in parts for i in part.outside)}
    return {i: place[i] for i in whole.indices if i in place}


class HeldOut:
    """The samples of a context that some parts of it lack, and what those predict for them.

    Parameters
    ----------
    whole
        The context.
    parts
        A stage in the context without each of some folds.

    Attributes
    ----------
    indices
        The samples, ascending.
    labels, groups
        As in `Context`, ``[n]`` in the order of the samples.
    """

    def __init__(self, whole: Context, parts: Sequence[Trial]) -> None:
        rows = rows_outside(whole, [part.context for part in parts])
        self.parts, self.indices, self._rows = parts, list(rows), list(rows.values())
        self.labels, self.groups = whole.run.samples.labels[self.indices], whole.groups_of(self.indices)

    def logits(self, strength: Strength | None) -> Tensor:
        """Return what the parts predict with a strength, ``[n, outputs]``."""
        return torch.cat([part.predicted(strength) for part in self.parts])[self._rows]

    def losses(self, strength: Strength | None, loss: Score) -> Tensor:
        """Return each sample's loss with a strength, ``[n]``."""
        return apply_score(loss, self.logits(strength), self.labels, "loss", per_sample=True)


def race(
    whole: Context,
    parts: Sequence[Trial],
    strengths: Sequence[Strength],
    finished: Sequence[Strength | None],
    loss: Score,
    meter: Meter,
    rival: Rival | None = None,
    candidates: Candidates | None = None,
) -> dict[Strength, float]:
    """Fit a stage with some strengths in one part after the other; those that lose early run no further.

    Parameters
    ----------
    whole, parts
        As in `HeldOut`.
    strengths
        Those to fit.
    finished
        Strengths that have been fitted in all parts: they are raced against, too.
    loss
        By what they are compared, as soon as there are `ENOUGH` samples.
    meter
        Told of the fits that were made, and of those that will not be.
    rival
        What another path predicts for all samples of `whole`, raced against, too.
    candidates
        What the strengths are among: those of a grid have nothing in common, and processes may share them out.

    Returns
    -------
    dict
        The strengths that were dropped, and by how much they lost: see `verifix.recipe.decision.behind` and
        `of_other_kinds`.
    """
    lost: dict[Strength, float] = {}
    kind = candidates.kind if isinstance(candidates, Listed) else ()
    for count, part in enumerate(parts, 1):
        left = [strength for strength in strengths if strength not in lost]
        if not left:
            break
        if (count - 1) % ranks.size() == 0:  # what they find is looked at in the order in which one would find it
            some = parts[count - 1 : count - 1 + ranks.size()]
            predict_in_shares(some, left, apart=isinstance(candidates, Grid))
        with part.fitter.round():
            for strength in left:
                part.predicted(strength)
                meter.fitted()
        seen, fresh = HeldOut(whole, parts[:count]), dict[Strength, float]()
        if count < len(parts) and len(seen.labels) >= ENOUGH:
            losses: dict[Strength | None, Tensor] = {k: seen.losses(k, loss) for k in [*finished, *left]}
            if rival is not None:
                among = torch.isin(torch.tensor(whole.indices), torch.tensor(seen.indices))
                losses[None] = apply_score(loss, rival[among], seen.labels, "loss", per_sample=True)
            fresh = behind(losses, left, seen.groups)
            if kind:
                fresh = of_other_kinds(losses, left, kind) | fresh
            lost |= fresh
        meter.folded(len(fresh), len(parts) - count)
    return lost

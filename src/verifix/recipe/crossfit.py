"""Cross-fitting: every verified sample is scored by a correction that was made without it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from verifix.losses import Score, apply_score, correct_or_not, tempered_cross_entropy
from verifix.model.weights import Update
from verifix.options import CorrectOptions
from verifix.progress import duration, progress_bar
from verifix.recipe.budget import Pace, estimate
from verifix.recipe.candidates import Candidates, Strength
from verifix.recipe.context import Context
from verifix.recipe.decision import Choice, Scores, choose, given, not_tried
from verifix.recipe.stages import Stage


@dataclass(frozen=True)
class Rules:
    """By what strengths are chosen.

    Attributes
    ----------
    options
        The settings of the correction.
    pace
        What the machine does per second, to foresee what a stage will take.
    score, loss
        The user's own, or None; see `verifix.correct`.
    """

    options: CorrectOptions
    pace: Pace
    score: Score | None = None
    loss: Score | None = None


def run_stage(
    stage: Stage, whole: Context, parts: Sequence[Context], rules: Rules, left: float, *, last: bool = False
) -> tuple[Choice, Context, list[Context]]:
    """Choose a stage's strength and fit it.

    Parameters
    ----------
    stage
        The stage.
    whole
        What to fit it on in the end.
    parts
        For each fold of `whole`, the context without it; empty if nothing is to be chosen.
    rules
        By what to choose.
    left
        Seconds that choosing may take.
    last
        Whether no stage follows, so that the parts need no fit.

    Returns
    -------
    choice : Choice
        The strength, and what it was chosen from.
    whole : Context
        What the next stage is fitted on.
    parts : list of Context
        The same without each fold; those of the last stage are not fitted.
    """
    begun = time.perf_counter()
    choice = _choose(stage, whole, parts, rules, left)
    strength = choice.strength
    following = _after(stage, strength, whole)
    further = list(parts) if last else [_after(stage, strength, part) for part in parts]
    layers = {} if strength is None else stage.layers(whole, strength)
    return replace(choice, layers=layers, seconds=time.perf_counter() - begun), following, further


def _choose(stage: Stage, whole: Context, parts: Sequence[Context], rules: Rules, left: float) -> Choice:
    """Choose a stage's strength, unless it is given, cannot run, or would take longer than what is left."""
    if stage.name == "project" and rules.options.alpha != "auto":
        return given(float(rules.options.alpha))
    obstacle = stage.obstacle(whole)
    if obstacle:
        return not_tried(obstacle)
    candidates = stage.candidates(parts[0])
    seconds = estimate(stage, whole, parts, candidates, rules.pace)
    if seconds > left:
        return not_tried(
            f"it would take about {duration(seconds)}, and {duration(max(left, 0))} of the budget are left", seconds
        )
    return replace(choose_strength(stage, candidates, whole, parts, rules), estimated=seconds)


def _after(stage: Stage, strength: Strength | None, context: Context) -> Context:
    """Return the context after a stage; contexts that several corrections share are fitted once."""

    def fitted() -> Context:
        if strength is None:
            return replace(context, learned=known)
        with context.fresh() as fresh:
            return replace(context.after(stage.name, strength, stage.fit(fresh, strength)), learned=known)

    logits = context.learned.get(("logits", strength))
    known = {} if logits is None else {("logits", None): logits}

    return context.learn(("after", strength), fitted)


def choose_strength(
    stage: Stage, candidates: Candidates, whole: Context, parts: Sequence[Context], rules: Rules
) -> Choice:
    """Choose a stage's strength by cross-fitting: every sample is scored by a correction that never saw it."""
    labels = whole.labels

    def scores(logits: Tensor) -> Scores:
        losses = apply_score(rules.loss or tempered_cross_entropy, logits, labels, "loss", per_sample=True)
        values = apply_score(rules.score or correct_or_not, logits, labels, "score", per_sample=False)
        return Scores(losses, float(values.mean()), values if values.ndim else None)

    def cross_fitted(strengths: Sequence[Strength]) -> list[Scores]:
        return [scores(logits) for logits in cross_fit(stage, strengths, whole, parts, rules.options.progress)]

    return choose(scores(_in_order(whole, parts, None)), cross_fitted, candidates)


def cross_fit(
    stage: Stage, strengths: Sequence[Strength], whole: Context, parts: Sequence[Context], show: bool
) -> list[Tensor]:
    """Return, per strength, the logits ``[n, outputs]`` of all samples of `whole`, each from the part without it."""
    with progress_bar(f"strength of {stage.name}", len(parts) * len(strengths), show, unit="fit") as bar:
        for part in parts:
            with part.fresh() as fresh:
                for strength in strengths:
                    if ("logits", strength) not in part.learned:
                        part.learned["logits", strength] = _predicted(part, stage.fit(fresh, strength))
                    bar.update()
    return [_in_order(whole, parts, strength) for strength in strengths]


def _predicted(part: Context, update: Update) -> dict[int, Tensor]:
    """Return the logits ``[outputs]`` of each sample that a part is asked for."""
    outside = part.outside
    return dict(zip(outside, part.predict(outside, update), strict=True))


def _in_order(whole: Context, parts: Sequence[Context], strength: Strength | None) -> Tensor:
    """Put together what the parts predict for the samples of `whole` that they lack, in the order of the samples."""
    rows: dict[int, Tensor] = {}
    own = set(whole.indices)
    for part in parts:
        found: dict[int, Tensor] = part.learn(("logits", strength), partial(_predicted, part, {}))
        rows |= {i: row for i, row in found.items() if i in own}
    return torch.stack([rows[i] for i in whole.indices])

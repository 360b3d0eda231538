"""Cross-fitting: every verified sample is scored by a correction that was made without it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from verifix.losses import Score, apply_score, correct_or_not, tempered_cross_entropy
from verifix.options import CorrectOptions
from verifix.progress import duration, progress_bar
from verifix.recipe.budget import OutOfTimeError, Stopwatch
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
    score, loss
        The user's own, or None; see `verifix.correct`.
    """

    options: CorrectOptions
    score: Score | None = None
    loss: Score | None = None


@dataclass(frozen=True, eq=False)
class Trial:
    """One stage in one context.

    Attributes
    ----------
    fitter
        The stage at work there.
    logits
        By strength, what the fit predicts for the samples outside ``[n, outputs]``; None is no change.
    following
        By strength, the context of the next stage.
    """

    fitter: Stage
    logits: dict[Strength | None, Tensor] = field(default_factory=dict)
    following: dict[Strength | None, Context] = field(default_factory=dict)

    @property
    def context(self) -> Context:
        """The context."""
        return self.fitter.context

    def predicted(self, strength: Strength | None) -> Tensor:
        """Return the logits ``[n, outputs]`` of the samples outside under one strength, fitted once."""
        if strength not in self.logits:
            update = {} if strength is None else self.fitter.fit(strength)
            self.logits[strength] = self.context.predict(self.context.outside, update)
        return self.logits[strength]

    def after(self, strength: Strength | None) -> Context:
        """Return the context after a strength, fitted once; corrections that share this one go on sharing that."""
        if strength not in self.following:
            self.following[strength] = self._after(strength, self.logits.get(strength))
        return self.following[strength]

    def _after(self, strength: Strength | None, logits: Tensor | None) -> Context:
        if strength is None:
            return replace(self.context, logits=logits)
        with self.fitter.round():
            return self.context.after(self.fitter.name, strength, self.fitter.fit(strength), logits)


class Trials:
    """One stage in all contexts that it is tried in; each is begun once.

    Parameters
    ----------
    stage
        The stage.
    prepare
        Context → its fitter there.
    """

    def __init__(self, stage: type[Stage], prepare: Callable[[Context], Stage]) -> None:
        self.stage = stage
        self._prepare = prepare
        self._of: dict[Context, Trial] = {}

    def __getitem__(self, context: Context) -> Trial:
        """Return the trial of a context."""
        if context not in self._of:
            trial = self._of[context] = Trial(self._prepare(context))
            if context.logits is not None:
                trial.logits[None] = context.logits
        return self._of[context]

    def end(self) -> None:
        """Let go of all fitters and of what they gave."""
        self._of.clear()


@contextmanager
def trying(stage: type[Stage]) -> Iterator[Trials]:
    """Open a stage for one correction, or for several that share contexts.

    Yields
    ------
    Trials
        To run the stage with. What was made lives until the end, but for the contexts that follow.
    """
    with stage.open() as prepare:
        trials = Trials(stage, prepare)
        try:
            yield trials
        finally:
            trials.end()


def run_stage(
    trials: Trials, whole: Context, parts: Sequence[Context], rules: Rules, left: float, *, last: bool = False
) -> tuple[Choice, Context, list[Context]]:
    """Choose a stage's strength and fit it.

    Parameters
    ----------
    trials
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
    choice = _choose(trials, whole, parts, rules, left)
    strength = choice.strength
    following = trials[whole].after(strength)
    further = list(parts) if last else [trials[part].after(strength) for part in parts]
    layers = {} if strength is None else trials[whole].fitter.layers(strength)
    seconds = time.perf_counter() - begun
    return replace(choice, layers=layers, seconds=seconds, about=trials.stage.about), following, further


def _choose(trials: Trials, whole: Context, parts: Sequence[Context], rules: Rules, left: float) -> Choice:
    """Choose a stage's strength, unless it is given, cannot run, or would take longer than what is left."""
    fixed = trials.stage.given(rules.options)
    if fixed is not None:
        return given(fixed)
    obstacle = trials[whole].fitter.obstacle()
    if obstacle:
        return not_tried(obstacle)
    if left <= 0:
        return not_tried("nothing of the budget remains")
    candidates = trials[parts[0]].fitter.candidates()
    watch = Stopwatch(left, len(parts) * sum(candidates.rounds), candidates.rounds[0])
    try:
        choice = choose_strength(trials, candidates, whole, parts, rules, watch)
    except OutOfTimeError as late:
        return not_tried(
            f"it would take about {duration(late.seconds)}, but only {duration(left)} of the budget remained",
            late.seconds,
        )
    return replace(choice, estimated=watch.expected)


def choose_strength(
    trials: Trials, candidates: Candidates, whole: Context, parts: Sequence[Context], rules: Rules, watch: Stopwatch
) -> Choice:
    """Choose a stage's strength by cross-fitting: every sample is scored by a correction that never saw it."""
    labels = whole.labels
    tried = [trials[part] for part in parts]

    def scores(strength: Strength | None) -> Scores:
        logits = _in_order(whole, tried, strength)
        losses = apply_score(rules.loss or tempered_cross_entropy, logits, labels, "loss", per_sample=True)
        values = apply_score(rules.score or correct_or_not, logits, labels, "score", per_sample=False)
        return Scores(losses, float(values.mean()), values if values.ndim else None)

    def cross_fitted(strengths: Sequence[Strength]) -> list[Scores]:
        cross_fit(tried, strengths, rules.options.progress, watch.fitted)
        return [scores(strength) for strength in strengths]

    return choose(scores(None), cross_fitted, candidates)


def cross_fit(parts: Sequence[Trial], strengths: Sequence[Strength], show: bool, fitted: Callable[[], object]) -> None:
    """Fit a stage with some strengths in every part, one round each, and predict the samples outside."""
    what = f"strength of {parts[0].fitter.name}"
    with progress_bar(what, len(parts) * len(strengths), show, unit="fit") as bar:
        for part in parts:
            with part.fitter.round():
                for strength in strengths:
                    part.predicted(strength)
                    bar.update()
                    fitted()


def _in_order(whole: Context, parts: Sequence[Trial], strength: Strength | None) -> Tensor:
    """Put together what the parts predict for the samples of `whole` that they lack, in the order of the samples."""
    place = {i: row for row, i in enumerate(i for part in parts for i in part.context.outside)}
    logits = torch.cat([part.predicted(strength) for part in parts])
    return logits[[place[i] for i in whole.indices]]

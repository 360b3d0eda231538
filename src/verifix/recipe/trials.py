"""Stages at work in several contexts, each fitted once, by one process or by several in shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from verifix.model import ranks
from verifix.model.weights import Update
from verifix.recipe.candidates import Strength
from verifix.recipe.context import Context
from verifix.recipe.stages import Stage


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
            outside = self.context.outside
            self.logits[strength] = (
                self.context.predict(outside, {}) if strength is None else self.fitter.predict(strength)
            )
        return self.logits[strength]

    def after(self, strength: Strength | None) -> Context:
        """Return the context after a strength, fitted once; corrections that share this one go on sharing that."""
        if strength not in self.following:
            self.follow(strength, {} if strength is None else self.fitted(strength))
        return self.following[strength]

    def fitted(self, strength: Strength) -> Update:
        """Return the new weights of a strength."""
        with self.fitter.round():
            return self.fitter.fit(strength)

    def follow(self, strength: Strength | None, update: Update) -> None:
        """Go on from the new weights of a strength."""
        logits = self.logits.get(strength)
        self.following[strength] = (
            replace(self.context, logits=logits)
            if strength is None
            else self.context.after(self.fitter.name, strength, update, logits)
        )


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


def follow_in_shares(trials: Trials, parts: Sequence[Context], strength: Strength | None) -> list[Context]:
    """Return the contexts after a strength, each fitted in one process."""
    new = [part for part in parts if strength not in trials[part].following]
    if strength is not None and new and ranks.size() > 1:
        device = new[0].run.device

        def fit(part: Context) -> Update:
            return _moved(trials[part].fitted(strength), "cpu")

        for part, update in zip(new, ranks.spread(fit, new, [1] * len(new)), strict=True):
            trials[part].follow(strength, _moved(update, device))
    return [trials[part].after(strength) for part in parts]


def _moved(update: Update, device: torch.device | str) -> Update:
    return {name: value.to(device) for name, value in update.items()}


def predict_in_shares(parts: Sequence[Trial], strengths: Sequence[Strength | None], *, apart: bool = False) -> None:
    """Let each process predict in its share of the parts, and put into all what it finds.

    Parameters
    ----------
    parts
        Those to predict in.
    strengths
        Those to predict with.
    apart
        Whether several processes may share the strengths of one part, if there are more of them than parts.
    """
    missing = [part for part in parts if not part.logits.keys() >= set(strengths)]
    if ranks.size() == 1 or not missing:
        return
    pieces = max(1, min(ranks.size() // len(missing), len(strengths))) if apart else 1
    jobs = [(part, strengths[piece::pieces]) for part in missing for piece in range(pieces)]

    def predict(job: tuple[Trial, Sequence[Strength | None]]) -> dict[Strength | None, Tensor]:
        part, some = job
        with part.fitter.round():
            return {strength: part.predicted(strength) for strength in some}

    for (part, _), logits in zip(jobs, ranks.spread(predict, jobs, [1] * len(jobs)), strict=True):
        part.logits.update(logits)

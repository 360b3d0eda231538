"""How long choosing will take, measured on the first fold of each stage."""

from __future__ import annotations

import time
from collections.abc import Iterable

from verifix.losses import tempered_cross_entropy
from verifix.recipe.budget import OutOfTimeError, Stopwatch
from verifix.recipe.candidates import Candidates, Grid, Strength
from verifix.recipe.context import Context
from verifix.recipe.crossfit import Rules, race, trying
from verifix.recipe.plan import Names, Plan
from verifix.recipe.stages import STAGES

PATIENCE = 10.0
"""Seconds after which a stage is measured no further than its present fit."""


class _FirstFold(Stopwatch):
    """Stops a stage after the fits of one fold, or after the first fit that is over when `PATIENCE` is."""

    def fitted(self, count: int = 1) -> None:
        """Note one more fit, or several that need not be made."""
        super().fitted(count)
        elapsed = time.perf_counter() - self._begun
        if self.expected is not None or elapsed > PATIENCE:
            raise OutOfTimeError(self.expected or elapsed * self.fits / self._done)


def forecast(plan: Plan, whole: Context, rules: Rules) -> dict[Names, float]:
    """Estimate what choosing takes.

    Parameters
    ----------
    plan
        The paths.
    whole
        The context of all samples.
    rules
        By what to choose.

    Returns
    -------
    dict
        Seconds that the last stage of each path takes in all folds, by the path; nothing where strengths are given.
        Strengths that lose early are dropped in a real run, which is then faster.
    """
    found: dict[str, float] = {}
    for path in (*plan.prefixes, *((name,) for name in plan.extensions)) if plan.choosing else ():
        if path[-1] not in found and path[-1] not in plan.base:
            seconds = _measured(path, whole, rules)
            if seconds is not None:
                found[path[-1]] = seconds
    every: Iterable[Names] = (*plan.prefixes, *((name,) for name in plan.extensions))
    return {path: found[path[-1]] for path in every if path[-1] in found}


def _measured(path: Names, whole: Context, rules: Rules) -> float | None:
    """Return what a stage takes in all folds; None if it cannot run after the stages before it."""
    context = whole.without(whole.folds[0])
    for name in path[:-1]:
        with trying(STAGES[name]) as trials:
            fitter = trials[context].fitter
            if not fitter.obstacle():
                context = trials[context].after(_some(fitter.candidates()))
    with trying(STAGES[path[-1]]) as trials:
        fitter = trials[context].fitter
        if fitter.obstacle():
            return None
        candidates = fitter.candidates()
        watch = _FirstFold(float("inf"), len(whole.folds) * sum(candidates.rounds), candidates.rounds[0])
        trial, loss = trials[context], rules.loss or tempered_cross_entropy
        trial.predicted(None)
        strengths = candidates.coarse if isinstance(candidates, Grid) else candidates.strengths
        try:
            race(whole, [trial], strengths, [], loss, watch.fitted)
        except OutOfTimeError as stopped:
            return stopped.seconds
        return watch.expected


def _some(candidates: Candidates) -> Strength:
    """Return one of some strengths."""
    return candidates.coarse[0] if isinstance(candidates, Grid) else candidates.strengths[0]

"""How long choosing will take, measured on the first fold of each stage."""

from __future__ import annotations

from verifix.losses import tempered_cross_entropy
from verifix.progress import progress_bar
from verifix.recipe.budget import OutOfTimeError, Stopwatch
from verifix.recipe.candidates import Candidates, Grid, Strength
from verifix.recipe.context import Context
from verifix.recipe.crossfit import Meter, Rules, race
from verifix.recipe.plan import Names, Plan
from verifix.recipe.stages import STAGES
from verifix.recipe.trials import trying

PATIENCE = 10.0
"""Seconds after which a stage is measured no further than its present fit."""


class _Impatient(Stopwatch):
    """Stops a stage after the first fit that is over when `PATIENCE` is."""

    def fitted(self) -> None:
        """Note one more fit."""
        super().fitted()
        if self._elapsed() > PATIENCE:
            raise OutOfTimeError(self._foreseen(self._elapsed()))


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
    every = (*plan.prefixes, *((name,) for name in plan.extensions))
    for path in every if plan.choosing else ():
        if path[-1] not in found and path[-1] not in plan.base:
            seconds = _measured(path, whole, rules)
            if seconds is not None:
                found[path[-1]] = seconds
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
        watch = _Impatient(float("inf"), len(whole.folds) * sum(candidates.rounds))
        trial, loss = trials[context], rules.loss or tempered_cross_entropy
        trial.predicted(None)
        strengths = candidates.coarse if isinstance(candidates, Grid) else candidates.strengths
        try:
            with progress_bar("", 0, show=False) as bar:
                race(whole, [trial], strengths, [], loss, Meter(bar, watch))
        except OutOfTimeError as stopped:
            return stopped.seconds
        return watch.expected


def _some(candidates: Candidates) -> Strength:
    """Return one of some strengths."""
    return candidates.coarse[0] if isinstance(candidates, Grid) else candidates.strengths[0]

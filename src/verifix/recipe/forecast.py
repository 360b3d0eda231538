"""How long choosing will take, measured on the first fold of each stage."""

from __future__ import annotations

from collections.abc import Iterable

from verifix.losses import tempered_cross_entropy
from verifix.model import ranks
from verifix.progress import Work, progress_bar, tell
from verifix.recipe.budget import OutOfTimeError, Stopwatch
from verifix.recipe.candidates import Candidates, Grid, Strength
from verifix.recipe.context import Context
from verifix.recipe.crossfit import Meter, Rules, race
from verifix.recipe.paths import Path
from verifix.recipe.plan import Names, Plan
from verifix.recipe.stages import STAGES
from verifix.recipe.trials import trying

PATIENCE = 10.0
"""Seconds after which a stage is measured no further than its present fit."""


class _Impatient(Stopwatch):
    """Stops a stage after the first fit that is over when `PATIENCE` is, the second at the earliest.

    The first fit holds what all strengths of a fold have in common: only the second shows what one more takes.
    """

    def __init__(self, folds: int, fits: int) -> None:
        super().__init__(float("inf"), folds * fits)
        self.folds = folds
        self._ends: list[float] = []

    def fitted(self) -> None:
        """Note one more fit."""
        super().fitted()
        self._ends.append(ranks.from_first(self._elapsed()))  # all processes stop at once
        if self._ends[-1] > PATIENCE and len(self._ends) > 1:
            raise OutOfTimeError(self.foreseen)

    @property
    def foreseen(self) -> float:
        """Seconds that all fits take, from those that were made."""
        first, last, more = self._ends[0], self._ends[-1], len(self._ends) - 1
        return self.folds * first + (self.fits - self.folds) * (last - first) / max(more, 1)


def foresee(plan: Plan, folds: int, work: Work) -> None:
    """Say what a correction will try; how long it takes shows once the first path is over.

    Nothing is fitted to find that out beforehand: on the digits it took a seventh of the time of the correction, and
    foresaw 45 to 62 s where 16 to 24 passed. A dry run does it.

    Parameters
    ----------
    plan
        The paths.
    folds
        In how many folds.
    work
        Is told what is ahead.
    """
    if plan.choosing:
        count = len(plan.walk)
        tell(f"correction: {count} path{'s' * (count != 1)} of stages in {folds} folds", work.shown)
        ahead = [1.0] * count
        work.foresee([*ahead, work.later(0.0, sum(ahead))] if work.later else ahead, known=False)


def seconds_of(tried: Iterable[Path], folds: int) -> dict[Names, float]:
    """Return what the last stage of each path took in one fold; the last one of a path may be an extension, too."""
    known = {path.stages: path.seconds / folds for path in tried if path.seconds is not None}
    return {stages[-1:]: seconds for stages, seconds in known.items()} | known


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
    for path in plan.walk if plan.choosing else ():
        if path[-1] not in found and path[-1] not in plan.base:
            seconds = _measured(path, whole, rules)
            if seconds is not None:
                found[path[-1]] = seconds
    return {path: found[path[-1]] for path in plan.walk if path[-1] in found}


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
        watch = _Impatient(-(-len(whole.folds) // ranks.size()), sum(candidates.rounds))
        trial, loss = trials[context], rules.loss or tempered_cross_entropy
        trial.predicted(None)
        strengths = candidates.coarse if isinstance(candidates, Grid) else candidates.strengths
        try:
            with progress_bar("", 0, show=False) as bar:
                race(whole, [trial], strengths, [], loss, Meter(bar, watch))
        except OutOfTimeError as stopped:
            return stopped.seconds
        return watch.foreseen


def _some(candidates: Candidates) -> Strength:
    """Return one of some strengths."""
    return candidates.coarse[0] if isinstance(candidates, Grid) else candidates.strengths[0]

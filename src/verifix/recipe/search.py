"""Search the paths of a recipe: each is cross-fitted as a whole, and what paths begin with alike is fitted once.

Paths are walked depth first, so that only the contexts of one path are held at a time: for a large network these are
its weights, once per fold and stage.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from verifix.errors import UsageError
from verifix.model import ranks
from verifix.model.weights import Update
from verifix.progress import progress_bar, tell
from verifix.recipe.candidates import Strength
from verifix.recipe.context import Context
from verifix.recipe.crossfit import Rules, rows_outside, run_stage, scores_of
from verifix.recipe.decision import Choice, Scores, given, point_of
from verifix.recipe.paths import Path, decide, withheld
from verifix.recipe.plan import Names, Plan
from verifix.recipe.stages import STAGES
from verifix.recipe.trials import Trials, follow_in_shares, trying

ByLayer = Mapping[str, Mapping[str, float]]


@dataclass
class Course:
    """The correction of some samples, on its way along the paths.

    Attributes
    ----------
    whole
        What it is fitted on; in the end, with the new weights.
    parts
        The same without each fold, which choose; empty if there is nothing to choose.
    paths
        What was tried: first what the others are compared with, which is no change, or what was given.
    choices
        Of the best path so far, by stage; in the end, without strengths if that path is not taken.
    reason
        Why it is taken, or not, in one sentence.
    spent
        Seconds.
    best
        What the best path so far predicts for all samples, each held out, ``[n, outputs]``; None before the first.
    """

    whole: Context
    parts: list[Context]
    paths: list[Path] = field(default_factory=list)
    choices: dict[str, Choice] = field(default_factory=dict)
    reason: str = ""
    spent: float = 0.0
    best: Tensor | None = None
    _before: Scores | None = None
    _longest: dict[str, Choice] = field(default_factory=dict)

    @property
    def strengths(self) -> dict[str, Strength | None]:
        """What was chosen, by stage."""
        return {stage: choice.strength for stage, choice in self.choices.items()}

    def begin(self, choices: Mapping[str, Choice], logits: Tensor, rules: Rules) -> None:
        """Note what paths are compared with."""
        self._before = scores_of(self.whole, logits, rules)
        self.paths.append(Path(_strengths(choices), point_of(None, self._before, self._before)))
        self.choices, self.best = dict(choices), logits

    def note(self, choices: Mapping[str, Choice], logits: Tensor, rules: Rules) -> None:
        """Note what a path came to."""
        assert self._before is not None  # noqa: S101 - the walk begins with `begin`
        last = list(choices.values())[-1]
        self._longest = max(self._longest, dict(choices), key=len)
        if last.strength is None:  # what is left is a shorter path
            self.paths.append(Path(_strengths(choices), None, last.reason, last.seconds))
            return
        point = point_of(None, scores_of(self.whole, logits, rules), self._before)
        lowest = min(path.point.loss for path in self.paths if path.point is not None)
        self.paths.append(Path(_strengths(choices), point, seconds=last.seconds))
        if point.loss < lowest:
            self.choices, self.best = dict(choices), logits

    def end(self, plan: Plan) -> None:
        """Decide on the best path."""
        decision = decide(self.paths)
        self.reason = decision.reason
        if not decision.taken:
            kept = {name: choice for name, choice in self.choices.items() if name in plan.base}
            nothing = len(self.choices) == len(plan.base)  # no path was better: the longest says why
            self.choices = withheld(self._longest if nothing else self.choices, decision.reason) | kept


@dataclass(frozen=True)
class _Place:
    """Where a course stands: the contexts without each fold, and what was chosen on the way."""

    parts: list[Context]
    choices: Mapping[str, Choice] = field(default_factory=dict)

    @property
    def effective(self) -> Names:
        """The stages so far that change something."""
        return tuple(stage for stage, choice in self.choices.items() if choice.strength is not None)


def search(plan: Plan, courses: Sequence[Course], rules: Rules, *, show: bool, title: str) -> None:
    """Choose a path for each course, and fit it.

    Parameters
    ----------
    plan
        The paths.
    courses
        Those to choose for; they may share contexts.
    rules
        By what to choose.
    show
        Whether to show progress.
    title
        What the progress is of.
    """
    with progress_bar(title, len(plan.walk) + 1, show, unit="stage", foreseen=True) as bar:
        if plan.choosing:
            _answer(courses)
            walk = _Walk(plan, courses, rules, bar)
            if not plan.base:
                for course in courses:
                    rows = rows_outside(course.whole, course.parts).values()
                    answers = [part.logits for part in course.parts if part.logits is not None]
                    course.begin({}, torch.cat(answers)[list(rows)], rules)
            walk.go((), [_Place(course.parts) for course in courses])
            for name in plan.extensions:
                walk.extend(name)
        for course in courses:
            if plan.choosing:
                course.end(plan)
            else:
                course.choices = {name: given(STAGES[name].given(rules.options)) for name in plan.base}
        found = ranks.spread(_fitted, courses, [1] * len(courses))
    for course, (update, layers) in zip(courses, found, strict=True):
        device = course.whole.run.device
        new = {name: value.to(device) for name, value in update.items()}
        course.whole = replace(course.whole, update=new, logits=None)
        course.choices |= {name: replace(course.choices[name], layers=layers[name]) for name in layers}


class _Walk:
    """A walk along all paths, of all courses together.

    What is fitted without two of the folds of a proof serves both corrections that lack one of them, for as long as
    they chose the same.
    """

    def __init__(self, plan: Plan, courses: Sequence[Course], rules: Rules, bar: Any) -> None:
        self.plan, self.courses, self.rules, self.bar = plan, courses, rules, bar

    def go(self, prefix: Names, places: Sequence[_Place | None]) -> None:
        """Try every stage that a path goes on with; a place is None where a shorter path does the same."""
        for name in self.plan.after(prefix):
            path = (*prefix, name)
            last = not self.plan.after(path)
            with trying(STAGES[name]) as trials:
                found = [
                    None if place is None else self.step(course, place, trials, last=last)
                    for course, place in zip(self.courses, places, strict=True)
                ]
            self.bar.update()
            if not last:
                self.go(path, _asking_less(found, self.courses))

    def step(self, course: Course, place: _Place, trials: Trials, *, last: bool) -> _Place | None:
        """Try a stage in a place, and note what that path is worth; return where it leads unless it is the last."""
        name = trials.stage.name
        path, shorter = (*place.choices, name), (*place.effective, name)
        if path != shorter and self.plan.repeats(path, shorter):
            return None  # the same without a stage that did nothing, which is tried by itself
        left = ranks.from_first(self.rules.options.budget_seconds - course.spent)
        begun = time.perf_counter()
        rival = course.best if last else None
        choice, logits = run_stage(trials, course.whole, place.parts, self.rules, left, rival)
        choices = {**place.choices, name: choice}
        if tuple(choices) == self.plan.base:
            course.begin(choices, logits, self.rules)
        elif set(choices) >= set(self.plan.base):
            course.note(choices, logits, self.rules)
        found = None if last else _Place(follow_in_shares(trials, place.parts, choice.strength), choices)
        course.spent += time.perf_counter() - begun
        tell(f"{' → '.join(choices)}: {choice.reason}", self.rules.options.progress)
        return found

    def extend(self, name: str) -> None:
        """Try a stage after each course's best path."""
        for course in self.courses:
            parts, begun = course.parts, time.perf_counter()
            left = ranks.from_first(self.rules.options.budget_seconds - course.spent)
            for earlier, choice in course.choices.items() if left > 0 else ():
                with trying(STAGES[earlier]) as trials:
                    parts = follow_in_shares(trials, parts, choice.strength)
            course.spent += time.perf_counter() - begun
            with trying(STAGES[name]) as trials:
                self.step(course, _Place(parts, course.choices), trials, last=True)
        self.bar.update()


def _answer(courses: Sequence[Course]) -> None:
    """Let the contexts that courses begin with know what the model predicts."""
    parts = list({id(part): part for course in courses for part in course.parts}.values())
    logits = ranks.spread(lambda part: part.predict(part.outside, {}), parts, [1] * len(parts))
    known = {id(part): replace(part, logits=found) for part, found in zip(parts, logits, strict=True)}
    for course in courses:
        course.parts = [known[id(part)] for part in course.parts]


def _asking_less(places: Sequence[_Place | None], courses: Sequence[Course]) -> list[_Place | None]:
    """Let parts that only one course is left with be scored on the fold that it lacks them for."""
    owners = Counter(id(part) for place in places if place is not None for part in place.parts)
    found: list[_Place | None] = []
    for place, course in zip(places, courses, strict=True):
        if place is None:
            found.append(None)
            continue
        own = set(course.whole.folds)
        parts = [p if owners[id(p)] > 1 else p.asking(sorted(own - set(p.folds))) for p in place.parts]
        found.append(replace(place, parts=parts))
    return found


def _fitted(course: Course) -> tuple[Update, dict[str, ByLayer]]:
    """Fit what was chosen on all samples of a course; return the new weights, and by stage what it did to layers."""
    context, layers = course.whole, {}
    for name, choice in course.choices.items():
        if choice.strength is not None:
            with trying(STAGES[name]) as trials:
                trial = trials[context]
                if obstacle := trial.fitter.obstacle():
                    raise UsageError(f"{name} cannot run: {obstacle}")
                context = trial.after(choice.strength)
                layers[name] = trial.fitter.layers(choice.strength)
    moved = {name: value.cpu() if ranks.size() > 1 else value for name, value in context.update.items()}
    return moved, layers


def _strengths(choices: Mapping[str, Choice]) -> dict[str, Strength | None]:
    return {name: choice.strength for name, choice in choices.items()}

"""The corrections of a nested proof: one without each outer fold, all on their way through the stages together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations

from verifix.model import ranks
from verifix.progress import progress_bar
from verifix.recipe.candidates import Strength
from verifix.recipe.context import Context
from verifix.recipe.crossfit import Rules, run_stage, trying
from verifix.recipe.plan import is_choosing
from verifix.recipe.stages import Stage


@dataclass
class Course:
    """The correction of one outer fold's complement, on its way through the stages.

    Attributes
    ----------
    whole
        What it is fitted on: all samples but those of the outer fold.
    parts
        The same without each other fold, which choose the strengths; empty if there is nothing to choose.
    strengths
        What was chosen so far, by stage.
    spent
        Seconds.
    """

    whole: Context
    parts: list[Context]
    strengths: dict[str, Strength | None] = field(default_factory=dict)
    spent: float = 0.0


def nested(stages: Sequence[type[Stage]], whole: Context, rules: Rules, show: bool) -> list[Course]:
    """Run a correction without each outer fold, and inside it choose by leaving out the other folds one by one.

    Parameters
    ----------
    stages
        The stages to run.
    whole
        The context of all samples.
    rules
        By what to choose.
    show
        Whether to show progress.

    Returns
    -------
    list of Course
        One for each fold of `whole`.
    """
    # All go through the stages together: what is fitted without two of the folds serves both corrections that lack one
    # of them, for as long as they chose the same.
    numbers, options, choosing = whole.folds, rules.options, is_choosing(rules.options)
    pairs = {frozenset(pair): whole.without(pair[0]).without(pair[1]) for pair in combinations(numbers, 2)}
    courses = [
        Course(whole.without(k), [pairs[frozenset((k, j))] for j in numbers if j != k and choosing]) for k in numbers
    ]
    with progress_bar("proof", len(stages) * len(courses), show, unit="stage") as bar:
        for stage in stages:
            last = stage is stages[-1]
            with trying(stage) as trials:
                for course in courses:
                    left = ranks.from_first(options.budget_seconds - course.spent)
                    choice, course.whole, course.parts = run_stage(
                        trials, course.whole, course.parts, rules, left, last=last
                    )
                    course.strengths[stage.name] = choice.strength
                    course.spent += choice.seconds or 0.0
                    bar.update()
            _ask_less(courses)
    return courses


def _ask_less(courses: Sequence[Course]) -> None:
    """Let parts that only one correction is left with be scored on the fold that it lacks them for."""
    owners = Counter(id(part) for course in courses for part in course.parts)
    for course in courses:
        course.parts = [
            part if owners[id(part)] > 1 else part.asking(sorted(set(course.whole.folds) - set(part.folds)))
            for part in course.parts
        ]

"""The corrections of a nested proof: one without each outer fold, all on their way along the paths together."""

from __future__ import annotations

from itertools import combinations

from verifix.recipe.context import Context
from verifix.recipe.crossfit import Rules
from verifix.recipe.plan import Plan
from verifix.recipe.search import Course, search


def nested(plan: Plan, whole: Context, rules: Rules, show: bool) -> list[Course]:
    """Run a correction without each outer fold, and inside it choose by leaving out the other folds one by one.

    Parameters
    ----------
    plan
        The paths to try.
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
    numbers = whole.folds
    pairs = {frozenset(pair): whole.without(pair[0]).without(pair[1]) for pair in combinations(numbers, 2)}
    courses = [
        Course(whole.without(k), [pairs[frozenset((k, j))] for j in numbers if j != k and plan.choosing])
        for k in numbers
    ]
    search(plan, courses, rules, show=show, title="proof")
    return courses

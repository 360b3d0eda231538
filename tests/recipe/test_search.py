"""The search of paths, against a loop that shares nothing; and the courses of a nested proof, against corrections."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.cases import small_data, small_net
from tests.stage_cases import memorised
from verifix.losses import correct_or_not, tempered_cross_entropy
from verifix.options import CorrectOptions
from verifix.recipe import crossfit
from verifix.recipe.crossfit import Rules
from verifix.recipe.decision import Raced, Scores, choose, point_of
from verifix.recipe.nested import nested
from verifix.recipe.paths import Path, decide
from verifix.recipe.plan import Plan, planned
from verifix.recipe.search import Course, search
from verifix.recipe.stages import STAGES

OPTIONS = CorrectOptions(progress=False)
TWO = Plan((("project", "refit"), ("refit",)))
DEEP = Plan((("project", "layerwise", "refit"), ("recentre", "refit"), ("refit",)))


def noisy_case(permuted: bool = False):
    """A network that memorised wrong labels, and samples with the right ones, or with such as have no meaning."""
    x, y = small_data(80)
    x = x.double()
    model = memorised(small_net().double(), x, torch.where(torch.arange(80) % 3 == 0, (y + 1) % 3, y))
    model[1].running_mean.add_(0.2)
    return model, x, y[torch.randperm(80, generator=torch.Generator().manual_seed(2))] if permuted else y


def walked(plan, whole, options=OPTIONS) -> Course:
    """What the search makes of a context."""
    course = Course(whole, [whole.without(fold) for fold in whole.folds])
    search(plan, [course], Rules(options), show=False, title="")
    return course


def fitted(context, strengths):
    """The context after some stages, one after the other."""
    for name, strength in strengths.items():
        if strength is not None:
            context = context.after(name, strength, STAGES[name](context).fit(strength))
    return context


def cross_fitted(whole, strengths) -> Scores:
    """What some stages are worth, each sample scored by fits without its fold."""
    rows = {}
    for fold in whole.folds:
        part = fitted(whole.without(fold), strengths)
        rows.update(zip(part.outside, part.predict(part.outside, {}), strict=True))
    logits = torch.stack([rows[i] for i in sorted(rows)])
    right = correct_or_not(logits, whole.labels)
    return Scores(tempered_cross_entropy(logits, whole.labels), float(right.mean()), right)


def by_hand(plan, whole, options=OPTIONS) -> list[Path]:
    """Try every path by itself from its beginning, and share nothing."""
    before = {name: STAGES[name].given(options) for name in plan.base}
    none = cross_fitted(whole, before)
    found = [Path(before, point_of(None, none, none))]
    for names in plan.prefixes:
        if names == plan.base or not set(names) >= set(plan.base):
            continue
        strengths: dict = {}
        for name in names:
            given = STAGES[name].given(options)
            if given is not None:
                strengths[name], reason = given, ""
                continue

            fitter = STAGES[name](fitted(whole.without(whole.folds[0]), strengths))
            if fitter.obstacle():
                strengths[name], reason = None, f"not tried: {fitter.obstacle()}"
                continue

            def evaluate(candidates, name=name, earlier=dict(strengths)):  # noqa: B006 - a copy of what it is now
                return Raced({s: cross_fitted(whole, {**earlier, name: s}) for s in candidates})

            choice = choose(cross_fitted(whole, strengths), evaluate, fitter.candidates())
            strengths[name], reason = choice.strength, choice.reason
        if strengths[names[-1]] is None:
            found.append(Path(strengths, None, reason))
        else:
            found.append(Path(strengths, point_of(None, cross_fitted(whole, strengths), none)))
    return found


def assert_same_strengths(found, expected):
    assert (found is None) is (expected is None)
    if expected is not None:
        assert np.array(found) == pytest.approx(np.array(expected))


def by_effect(paths) -> dict:
    """Paths by what they change, and by what was tried last if that was left: those alike in this are the same."""
    found: dict = {}
    for path in paths:
        changing = tuple(name for name, strength in path.strengths.items() if strength is not None)
        found.setdefault((changing, "" if path.point else path.stages[-1]), path)
    return found


def assert_same_paths(found, expected):
    found, expected = by_effect(found), by_effect(expected)
    assert found.keys() == expected.keys()
    for key, other in expected.items():
        one = found[key]
        for name in key[0]:
            assert_same_strengths(one.strengths[name], other.strengths[name])
        assert one.reason == other.reason
        assert (one.point is None) is (other.point is None), other
        if one.point is not None:
            for number in ("loss", "loss_gain", "standard_error", "score", "score_error"):
                assert getattr(one.point, number) == pytest.approx(getattr(other.point, number), abs=1e-6), other


def assert_same_update(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("recentre")
@pytest.mark.parametrize("permuted", [False, True], ids=["meaning", "permuted"])
@pytest.mark.parametrize(
    ("plan", "options"),
    [
        (TWO, OPTIONS),
        (DEEP, OPTIONS),
        (None, CorrectOptions(progress=False, alpha=30.0, recipe="project,refit")),
        (None, CorrectOptions(progress=False, alpha=30.0, recipe="recentre,project,refit")),
    ],
    ids=["two", "deep", "alpha first", "alpha later"],
)
def test_it_chooses_and_fits_what_a_loop_does_that_shares_nothing(lend, monkeypatch, plan, options, permuted):
    monkeypatch.setattr(crossfit, "ENOUGH", math.inf)
    plan = plan or planned(options)
    model, x, y = noisy_case(permuted)
    whole = lend(model, x, y, folds=5)
    course, expected = walked(plan, whole, options), by_hand(plan, whole, options)
    assert_same_paths(course.paths, expected)
    decision = decide(expected)
    strengths = decision.path.strengths if decision.taken else expected[0].strengths
    for name in {name for path in plan.paths for name in path}:
        assert_same_strengths(course.strengths.get(name), strengths.get(name))
    assert course.reason.startswith("no change") is not decision.taken
    assert decision.taken is (not permuted and "refit" in decision.path.strengths)  # of both there are cases
    assert_same_update(course.whole.update, fitted(whole, strengths).update)


def test_what_is_not_taken_is_shown_and_changes_nothing(lend):
    model, x, y = noisy_case(permuted=True)
    course = walked(TWO, lend(model, x, y, folds=5))
    assert course.choices
    assert all(choice.strength is None for choice in course.choices.values())
    assert course.whole.update == {}
    assert course.reason.startswith("no change: ")


@pytest.mark.slow
@pytest.mark.usefixtures("short_training")
@pytest.mark.slow
@pytest.mark.usefixtures("recentre")
@pytest.mark.parametrize("permuted", [False, True], ids=["meaning", "permuted"])
def test_courses_of_a_proof_are_corrections_made_separately(lend, permuted):
    plan = Plan((("project", "refit"), ("project", "finetune"), ("refit",)))
    model, x, y = noisy_case(permuted)
    whole = lend(model, x, y, folds=5)
    courses = nested(plan, whole, Rules(OPTIONS), show=False)
    assert [course.whole.outside for course in courses] == [list(range(k, 80, 5)) for k in range(5)]
    for course in courses:
        own = course.whole.indices
        alone = walked(plan, lend(model, x[own], y[own], folds=4))  # its folds are the other four
        assert course.strengths.keys() == alone.strengths.keys()
        for name, strength in alone.strengths.items():
            assert_same_strengths(course.strengths[name], strength)
        assert_same_paths(course.paths, alone.paths)
        assert_same_update(course.whole.update, alone.whole.update)
        assert course.best.shape == alone.best.shape
        torch.testing.assert_close(course.best, alone.best, rtol=1e-6, atol=1e-6)


def test_what_paths_begin_with_alike_is_fitted_once(lend, monkeypatch):
    model, x, y = noisy_case()
    fits: list = []
    real = STAGES["project"].fit

    def noted(self, strength):
        fits.append((tuple(self.context.folds), strength))
        return real(self, strength)

    monkeypatch.setattr(STAGES["project"], "fit", noted)
    monkeypatch.setattr(crossfit, "ENOUGH", math.inf)
    course = walked(Plan((("project", "refit"), ("project", "layerwise"))), lend(model, x, y, folds=5))
    chosen = course.paths[1].strengths["project"]
    counts = {fit: fits.count(fit) for fit in fits if len(fit[0]) < 5}
    assert {len(folds) for folds, _ in counts} == {4}
    assert all(count == (2 if strength == chosen else 1) for (_, strength), count in counts.items())


def test_nothing_is_tried_where_all_strengths_are_given(lend):
    model, x, y = noisy_case()
    options = CorrectOptions(progress=False, alpha=30.0)
    course = Course(lend(model, x, y), [])
    search(planned(options), [course], Rules(options), show=False, title="")
    assert (course.paths, course.reason, course.best) == ([], "", None)
    assert course.strengths == {"project": 30.0}
    assert_same_update(course.whole.update, STAGES["project"](course.whole.__class__(course.whole.run, [0])).fit(30.0))

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
DEEP = Plan((("project", "layerwise", "refit"), ("recalibrate", "refit"), ("refit",)))


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
        strengths: dict = {}
        if names == plan.base:
            continue
        for name in names:
            given = STAGES[name].given(options)
            if given is not None:
                strengths[name], reason = given, ""
                continue

            def evaluate(candidates, name=name, earlier=dict(strengths)):  # noqa: B006 - a copy of what it is now
                return Raced({s: cross_fitted(whole, {**earlier, name: s}) for s in candidates})

            candidates = STAGES[name](fitted(whole.without(whole.folds[0]), strengths)).candidates()
            choice = choose(cross_fitted(whole, strengths), evaluate, candidates)
            strengths[name], reason = choice.strength, choice.reason
        effective = tuple(name for name in names[:-1] if strengths[name] is not None)
        if len(effective) < len(names) - 1 and (*effective, names[-1]) in plan.prefixes:
            continue  # the same as that shorter path
        if strengths[names[-1]] is None:
            found.append(Path(strengths, None, reason))
        else:
            found.append(Path(strengths, point_of(None, cross_fitted(whole, strengths), none)))
    return found


def assert_same_strengths(found, expected):
    assert found.keys() == expected.keys()
    for name, strength in expected.items():
        assert (found[name] is None) is (strength is None), name
        if strength is not None:
            assert np.array(found[name]) == pytest.approx(np.array(strength)), name


def assert_same_paths(found, expected):
    def in_order(paths):
        return sorted(paths, key=lambda path: path.stages)

    assert [path.stages for path in in_order(found)] == [path.stages for path in in_order(expected)]
    for one, other in zip(in_order(found), in_order(expected), strict=True):
        assert_same_strengths(one.strengths, other.strengths)
        assert one.reason == other.reason
        assert (one.point is None) is (other.point is None), other
        if one.point is not None:
            for number in ("loss", "loss_gain", "standard_error", "score", "score_error"):
                assert getattr(one.point, number) == pytest.approx(getattr(other.point, number), abs=1e-6), other


def assert_same_update(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("permuted", [False, True], ids=["meaning", "permuted"])
@pytest.mark.parametrize(
    ("plan", "options"),
    [
        (TWO, OPTIONS),
        (DEEP, OPTIONS),
        (None, CorrectOptions(progress=False, alpha=30.0, recipe="project,refit")),
        (None, CorrectOptions(progress=False, alpha=30.0, recipe="recalibrate,project,refit")),
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
    kept = {name: strength for name, strength in course.strengths.items() if strength is not None}
    assert_same_strengths(kept, {name: s for name, s in strengths.items() if s is not None})
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


@pytest.mark.usefixtures("short_training")
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
        assert_same_strengths(course.strengths, alone.strengths)
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

"""What to do after a correction that was not written, and how long one will take."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import verifix
from tests.cases import small_data, small_net
from tests.stage_cases import memorised
from verifix.evaluation.advice import more_samples, other_recipe, rare_classes
from verifix.evaluation.power import POWER, samples_for
from verifix.evaluation.significance import THRESHOLD
from verifix.options import CorrectArguments
from verifix.preflight import begin
from verifix.recipe.crossfit import Rules
from verifix.recipe.decision import Point
from verifix.recipe.forecast import forecast
from verifix.recipe.paths import Path


def test_as_many_samples_as_are_named_show_a_gain_as_often_as_said():
    gain, error, n = 0.04, 0.03, 100
    needed = samples_for(gain, error, n)
    draws = np.random.default_rng(0).normal(gain, error * np.sqrt(n / needed), 200_000)
    from scipy.stats import norm

    shown = (draws > norm.isf(THRESHOLD) * error * np.sqrt(n / needed)).mean()
    assert shown == pytest.approx(POWER, abs=0.01)
    assert samples_for(0.5, 0.001, n) == n + 1
    assert [samples_for(g, e, n) for g, e in ((0, 1), (-0.1, 0.1), (0.1, 0.0), (0.1, float("inf")))] == 4 * [None]


def path(score: float, error: float) -> Path:
    return Path({"project": 10.0}, Point(None, 0.5, 0.1, 0.1, score, error))


def test_more_samples_are_counted_from_the_proof_or_from_the_best_path():
    labels = torch.arange(60) % 2
    before = torch.where(torch.arange(60) % 5 == 0, 1 - labels, labels)
    slightly = torch.where(torch.arange(60) == 0, labels, before)
    proved = verifix.compare(before, slightly, labels)
    more = proved.samples_needed - 60
    assert more_samples(proved, (), 60).startswith(f"About {-(-more // 10) * 10} more verified samples would decide")
    worse = verifix.compare(slightly, before, labels)
    assert "the proof shows no gain" in more_samples(worse, (), 60)
    none = Path({}, Point(None, 0.6, 0.0, 0.0, 0.7))
    needed = samples_for(0.05, 0.04, 60) - 60
    assert more_samples(None, (none, path(0.75, 0.04)), 60).startswith(f"Verify about {-(-needed // 10) * 10} more")
    assert "no path that was tried raised the accuracy" in more_samples(None, (none, path(0.69, 0.04)), 60)
    assert "no path that was tried raised the accuracy" in more_samples(None, (none,), 60)


def test_classes_with_few_samples_are_named_and_balanced_ones_are_not():
    assert rare_classes([30, 30, 3, 0], ["ant", "cow", "yak", "bee"]).startswith(
        "Few verified samples so far: bee (0), yak (3)."
    )
    assert rare_classes([30, 30, 3], None).startswith("Few verified samples so far: class 2 (3).")
    assert rare_classes([20, 20, 20], None) == rare_classes([], None) == ""
    assert "and 5 more classes" in rare_classes([30, 30, 3, 0, 0, 0, 0, 0, 0, 0], None)


def test_the_other_recipe_is_named_with_its_time():
    assert "--recipe auto" in other_recipe("verifix", None)
    assert other_recipe("auto", 90.0).endswith("chooses among fewer corrections in about 90 s.")
    assert "--recipe auto" in other_recipe("project,refit", 3.0)


def test_a_forecast_names_every_path_that_would_be_tried():
    x, y = small_data(60)
    model = memorised(small_net(), x, y)
    for recipe, wanted in (
        ("verifix", {("project",)}),
        ("project,layerwise,refit", {("project",), ("project", "layerwise"), ("project", "layerwise", "refit")}),
    ):
        options = CorrectArguments(recipe=recipe, progress=False, verified_from="unseen")
        with begin(model, (x, y), options, folds=5) as start:
            found = forecast(start.plan, start.whole, Rules(options))
        assert set(found) == wanted
        assert all(seconds > 0 for seconds in found.values())
    options = CorrectArguments(alpha=10.0, progress=False)
    with begin(model, (x, y), options, folds=5) as start:
        assert forecast(start.plan, start.whole, Rules(options)) == {}

from __future__ import annotations

import itertools
import math
import re
import time
from dataclasses import replace
from typing import ClassVar

import pytest
import torch

import verifix
from tests.cases import small_data, small_net
from tests.stage_cases import memorised
from verifix import UsageError
from verifix.options import CorrectOptions
from verifix.progress import duration
from verifix.recipe.budget import OutOfTimeError, Stopwatch
from verifix.recipe.stages import PATHS, STAGES

TIMES = {
    "90s": 90, "90 sec": 90, "5min": 300, "5 m": 300, "1h": 3600, "1.5H": 5400, "30": 30, " 2 min ": 120, 30: 30,
    0.5: 0.5, 1e-6: 1e-6, None: math.inf,
}  # fmt: skip
BAD = ["soon", "5 days", "", ".", "1.2.3", "-5", "0", "0s", 0, -1, -0.5, float("nan"), True, "1h30", "min"]


@pytest.mark.parametrize("text", TIMES)
def test_a_budget_is_read_as_seconds(text):
    assert CorrectOptions(budget=text).budget_seconds == TIMES[text]


@pytest.mark.parametrize("bad", BAD, ids=repr)
def test_what_is_no_time_is_refused_in_one_line(bad):
    with pytest.raises(UsageError, match=r"budget is .*such as") as caught:
        CorrectOptions(budget=bad)
    assert "\n" not in str(caught.value)


def test_a_stage_is_stopped_once_its_first_fold_shows_that_it_takes_too_long(monkeypatch):
    clock = itertools.count().__next__  # every look at it is a second
    monkeypatch.setattr("verifix.recipe.budget.time.perf_counter", clock)
    watch = Stopwatch(left=30.0, fits=40)
    for _ in range(4):
        watch.fitted()
    with pytest.raises(OutOfTimeError) as caught:
        watch.folded(0)
    assert caught.value.seconds == 50.0  # 10 times what 4 fits and the end of the fold took
    assert watch.expected == 50.0


def test_fits_that_are_spared_are_not_foreseen(monkeypatch):
    monkeypatch.setattr("verifix.recipe.budget.time.perf_counter", itertools.count().__next__)
    watch = Stopwatch(left=30.0, fits=40)
    for _ in range(4):
        watch.fitted()
    watch.folded(18)
    assert watch.expected == 5 * 22 / 4


def test_a_stage_is_stopped_when_nothing_is_left(monkeypatch):
    monkeypatch.setattr("verifix.recipe.budget.time.perf_counter", itertools.count(step=10).__next__)
    watch = Stopwatch(left=25.0, fits=40)
    watch.fitted()
    watch.fitted()
    with pytest.raises(OutOfTimeError) as caught:
        watch.fitted()
    assert caught.value.seconds == 30 * 40 / 3


def test_a_stage_that_fits_runs_to_its_end(monkeypatch):
    monkeypatch.setattr("verifix.recipe.budget.time.perf_counter", itertools.count().__next__)
    watch = Stopwatch(left=50.0, fits=40)
    for _ in range(10):
        for _ in range(4):
            watch.fitted()
        watch.folded(0)
    assert watch.expected == 50.0


def test_a_slow_stage_is_dropped_after_its_first_fold_and_tells_what_it_would_have_taken():
    @verifix.register_stage
    class Slow(verifix.Stage):
        name, about = "slow", "Sleeps."
        fits: ClassVar[list[float]] = []

        def candidates(self):
            return verifix.Listed((1.0, 2.0))

        def fit(self, strength):
            self.fits.append(strength)
            time.sleep(0.4)
            return {}

    try:
        x, y = small_data(80)
        correction = verifix.correct(small_net(), (x, y), recipe="slow", budget=3.0, folds=8, progress=False)
    finally:
        del STAGES["slow"]
    assert Slow.fits == [1.0, 2.0]  # of 16, which take 6.4 s
    choice = correction.choices["slow"]
    assert re.fullmatch(r"not tried: it would take about \d+ s, but only 3 s of the budget remained", choice.reason)
    assert 6.4 <= choice.estimated < 12


def test_times_are_written_for_reading():
    assert [duration(s) for s in (0.4, 5, 119, 120, 3600, 7200, 9000)] == [
        "0 s", "5 s", "119 s", "2 min", "60 min", "2.0 h", "2.5 h",
    ]  # fmt: skip


def test_paths_that_do_not_fit_are_not_tried_and_the_summary_says_so():
    x, y = small_data(80)
    model = memorised(small_net(), x, y)
    correction = verifix.correct(model, (x, y), budget=1e-6, progress=False)
    none, *others = correction.paths
    assert none.point is not None
    assert {path.stages[0] for path in others} == {path[0] for path in PATHS} | {"project_jittered"}
    for path in others:
        assert path.reason.startswith("not tried: "), path
        assert f"{' → '.join(path.stages)}: {path.reason}" in correction.summary(verbose=True)
    assert f"{len(others)} of {len(others)} paths were not tried to their end: it would take" in correction.summary()
    assert any("nothing of the budget remains" in path.reason for path in others)
    assert correction.reason == "no change: no path was tried to its end"
    assert not correction.changed


def test_a_budget_that_suffices_changes_nothing():
    x, y = small_data(80)
    model = memorised(small_net(), x, torch.where(torch.arange(80) % 3 == 0, (y + 1) % 3, y))
    recipe = "project,refit"
    free = verifix.correct(model, (x, y), recipe=recipe, progress=False)
    tight = verifix.correct(model, (x, y), recipe=recipe, budget="2h", progress=False)
    assert free.strengths == tight.strengths
    assert [replace(path, seconds=None) for path in free.paths] == [replace(path, seconds=None) for path in tight.paths]
    for name, choice in free.choices.items():
        assert choice.points == tight.choices[name].points
    assert all(torch.equal(value, tight.corrected[name]) for name, value in free.corrected.items())
    assert free.corrected.keys() == tight.corrected.keys()

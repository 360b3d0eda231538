from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

import verifix
from tests.cases import small_data, small_net
from tests.stage_cases import memorised
from verifix import UsageError
from verifix.options import CorrectOptions
from verifix.progress import duration
from verifix.recipe.budget import Pace, estimate, measure
from verifix.recipe.candidates import Grid, Listed
from verifix.recipe.stages import STAGES, Cost

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


class Counted:
    """A stage with a cost that is easy to add up."""

    def __init__(self, context, flops=0.0, again=0.0, runs=0.0, runs_again=0.0) -> None:
        self.context, self.numbers = context, (flops, again, 0, runs, runs_again)

    def cost(self):
        size = len(self.context.indices)
        flops, again, nbytes, runs, runs_again = self.numbers
        return Cost(flops * size, again * size, nbytes, runs * size, runs_again * size)


def test_the_estimate_adds_up_fits_in_every_context_and_runs_of_what_is_held_out(lend):
    model, (x, y) = small_net().eval(), small_data(60)
    whole = lend(model, x, y, folds=3)
    contexts = [whole, *(whole.without(fold) for fold in range(3))]
    pace = Pace(flops=1000.0, runs=10.0)
    held_out = 20 / 10.0  # seconds for a fold
    four = Listed((1.0, 2.0, 3.0, 4.0))

    def estimated(candidates, pace, **costs):
        all_samples, *parts = (Counted(context, **costs) for context in contexts)
        return estimate(all_samples, parts, candidates, pace)

    assert estimated(four, pace) == pytest.approx(3 * 4 * held_out)
    # One fit on all 60; on each 40, the first of every round anew, the others on top of it.
    assert estimated(four, pace, flops=5) == pytest.approx(3 * 4 * held_out + (5 * 60 + 3 * 5 * 40) / 1000)
    grid = Grid(1, 100, (0.5, 0.25))  # rounds of 3, 2 and 1
    costs = {"flops": 5, "again": 2, "runs": 7, "runs_again": 3}
    flops = 5 * 60 + 3 * 40 * (3 * 5 + 3 * 2)
    runs = 7 * 60 + 3 * 40 * (3 * 7 + 3 * 3) + 3 * 6 * 20
    assert estimated(grid, pace, **costs) == pytest.approx(flops / 1000 + runs / 10)
    assert estimated(grid, Pace(math.inf, math.inf), **costs) == 0


def test_the_pace_is_that_of_this_machine(lend):
    model, (x, y) = small_net().eval(), small_data(80)
    pace = measure(lend(model, x, y))
    assert 1e7 < pace.flops < 1e15
    assert 100 < pace.runs < 1e9


def test_times_are_written_for_reading():
    assert [duration(s) for s in (0.4, 5, 119, 120, 3600, 7200, 9000)] == [
        "0 s", "5 s", "119 s", "2 min", "60 min", "2.0 h", "2.5 h",
    ]  # fmt: skip


def test_every_stage_tells_its_cost(lend):
    x, y = small_data(80)
    model = memorised(small_net(), x, y)
    context = replace(lend(model, x, y, folds=4), strengths={"project": 10.0})
    for name, stage in STAGES.items():
        cost = stage(context).cost()
        assert cost.flops + cost.runs > 0, name
        assert cost.flops_again <= cost.flops, name
        assert cost.runs_again <= cost.runs, name
        assert all(math.isfinite(n) and n >= 0 for n in (cost.flops, cost.flops_again, cost.nbytes)), name


def test_stages_that_do_not_fit_are_not_tried_and_the_summary_says_so():
    x, y = small_data(80)
    model = memorised(small_net(), x, y)
    correction = verifix.correct(model, (x, y), budget=1e-6, progress=False)
    for name, choice in correction.choices.items():
        assert choice.reason.startswith("not tried: "), name
        assert f"{name}: {choice.reason}" in correction.summary()
    assert "it would take about" in correction.choices["refit"].reason
    assert "of the budget remain" in correction.choices["refit"].reason
    assert correction.choices["refit"].estimated > 0
    assert not correction.changed


def test_a_budget_that_suffices_changes_nothing():
    x, y = small_data(80)
    model = memorised(small_net(), x, torch.where(torch.arange(80) % 3 == 0, (y + 1) % 3, y))
    recipe = "project,recalibrate,refit"
    free = verifix.correct(model, (x, y), recipe=recipe, progress=False)
    tight = verifix.correct(model, (x, y), recipe=recipe, budget="2h", progress=False)
    assert free.strengths == tight.strengths
    for name in recipe.split(","):
        assert free.choices[name].points == tight.choices[name].points
    assert all(torch.equal(value, tight.corrected[name]) for name, value in free.corrected.items())
    assert free.corrected.keys() == tight.corrected.keys()

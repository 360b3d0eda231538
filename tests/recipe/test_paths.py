"""The one decision: the best path against no change."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from verifix.recipe.decision import MINIMAL_GAIN, Choice, Point, given, not_tried
from verifix.recipe.paths import SPREAD, SURE, Path, decide, probability, withheld

NONE = Path({}, Point(None, 1.0, 0.0, 0.0, 0.5))


def path(gain: float, error: float, score: float = 0.6, **strengths) -> Path:
    return Path(strengths or {"project": 30.0}, Point(None, 1.0 - gain, gain, error, score))


# Φ(z) at z = g / s · τ / √(τ² + s²), where τ is 0.2: by hand from a table of the normal distribution.
TABLE = [
    (0.0, 0.1, 0.5),
    (0.15, 0.15, 0.7881),  # z = 0.2 / 0.25 = 0.8
    (0.3, 0.15, 0.9452),  # z = 2 · 0.8
    (-0.3, 0.15, 0.0548),
    (0.2, 0.2, 0.7602),  # z = 1 / √2
    (0.001, 0.001, 0.8413),  # as without a prior
    (1.0, 100.0, 0.5000),  # samples say nothing
    (0.1, math.inf, 0.5),
    (-0.1, math.inf, 0.5),
    (1e-9, 0.0, 1.0),
    (0.0, 0.0, 0.0),
    (-1e-9, 0.0, 0.0),
]


def test_the_probability_of_a_gain_by_hand():
    assert SPREAD == 0.2
    # s = τ: w = ½, B = √½ exp(z² / 4); z = 2: B = 0.70711 · 2.71828 = 1.92212, Φ(√2) = 0.92135
    assert probability(0.4, 0.2) == pytest.approx(1.92212 / 2.92212 * 0.92135, abs=5e-5)
    assert probability(0.0, 0.2) == pytest.approx(0.70711 / 1.70711 / 2, abs=5e-5)
    assert probability(0.4, math.inf) == pytest.approx(0.25)  # nothing is known but the prior
    assert probability(1e3, 1e-3) == 1.0
    assert probability(0.1, 1e-12) == pytest.approx(1.0)  # errors that are lost beside the spread
    assert probability(-0.1, 1e-12) == pytest.approx(0.0)


@pytest.mark.parametrize(("gain", "error"), [(0.1, 0.08), (0.02, 0.3), (-0.05, 0.05)])
def test_it_is_the_share_of_the_prior_times_the_likelihood_above_zero(gain, error):
    step = 1e-4
    grid = [step * (k + 0.5) for k in range(-20_000, 20_000)]
    height = 1 / (SPREAD * math.sqrt(2 * math.pi))
    mass = [step * height * math.exp(-((x / SPREAD) ** 2) / 2 - ((gain - x) / error) ** 2 / 2) for x in grid]
    nothing = math.exp(-((gain / error) ** 2) / 2)
    above = sum(m for x, m in zip(grid, mass, strict=True) if x > 0) / (sum(mass) + nothing)
    assert probability(gain, error) == pytest.approx(above, abs=1e-4)


def test_the_lowest_loss_is_taken():
    paths = [NONE, path(0.1, 0.001, a=1.0), path(0.3, 0.001, a=1.0, b=(2.0, 3.0)), path(0.2, 0.001, b=1.0)]
    decision = decide(paths)
    assert decision.path is paths[2]
    assert decision.taken
    assert decision.reason == (
        "a → b lowers the loss by 0.3000 (standard error 0.0010), the score goes from 0.5000 to 0.6000"
    )


def test_only_the_best_path_is_asked_whether_it_is_sure():
    decision = decide([NONE, path(0.1, 0.001), path(0.3, 10.0, refit=1.0)])
    assert decision.path.strengths == {"refit": 1.0}
    assert not decision.taken
    assert decision.reason.startswith("no change: refit lowers the loss by 0.3000 (standard error 10.0000), the score")
    assert decision.reason.endswith("; that the loss falls is 25% probable")


def test_a_gain_is_taken_from_the_probability_that_is_sure():
    assert SURE == 1 / 2
    error = 0.15
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if probability(middle, error) < SURE else (low, middle)
    assert decide([NONE, path(1.001 * high, error)]).taken
    assert not decide([NONE, path(0.999 * low, error)]).taken
    assert not decide([NONE, path(0.1, math.inf)]).taken
    assert decide([NONE, path(2 * MINIMAL_GAIN, 0.0)]).taken


def test_two_standard_errors_of_a_small_gain_speak_for_no_gain():
    assert not decide([NONE, path(0.03, 0.015)]).taken
    assert decide([NONE, path(0.3, 0.13)]).taken


@pytest.mark.parametrize("error", [0.0, 1e-6, math.inf])
def test_a_gain_below_the_minimal_one_is_not_worth_a_change_however_sure(error):
    decision = decide([NONE, path(0.99 * MINIMAL_GAIN, error)])
    assert (decision.taken, decision.reason) == (False, "no change: no path lowers the loss")
    assert not decide([NONE, path(-0.1, error)]).taken


@pytest.mark.parametrize("error", [0.0, 0.2, math.inf])
def test_the_score_may_not_fall_and_may_stay(error):
    def with_score(score):
        found = path(0.3, 0.001, score)
        return decide([NONE, replace(found, point=replace(found.point, score_error=error))])

    assert with_score(0.5).taken
    lower = with_score(0.49)
    assert not lower.taken
    assert "the score goes from 0.5000 to 0.4900" in lower.reason
    assert lower.reason.startswith("no change: project lowers the loss by 0.3000")


def test_a_given_alpha_is_the_base_that_others_are_compared_with():
    base = Path({"project": 30.0}, NONE.point)
    assert decide([base, path(0.3, 0.001, project=30.0, refit=1.0)]).taken
    unclear = decide([base, path(0.3, 1.0, project=30.0, refit=1.0)])
    assert not unclear.taken
    alone = decide([base])
    assert (alone.path, alone.taken) == (base, False)


def test_paths_that_were_not_tried_do_not_count():
    left = Path({"refit": None}, None, "not tried: nothing of the budget remains")
    lost = Path({"project": None}, None, "no change: no strength lowers the loss")
    decision = decide([NONE, left])
    assert (decision.path, decision.taken) == (NONE, False)
    assert decision.reason == "no change: no path was tried to its end"
    assert decide([NONE, lost, left]).reason == "no change: no path lowers the loss"
    assert decide([NONE, lost, left, path(0.3, 0.001)]).taken


def test_a_path_is_named_by_what_changes_something():
    assert Path().name == "no change"
    assert Path({"a": 1.0, "b": None, "c": (2.0, 3.0)}).name == "a → c"
    assert Path({"a": 1.0, "b": None}).stages == ("a", "b")


def test_a_path_comes_back_from_plain_data():
    for one in (
        NONE,
        replace(path(0.1, 0.2, project=30.0, finetune=(0.01, 40.0, 1.0)), seconds=2.0),
        Path({"refit": None}, None, "not tried: nothing of the budget remains"),
    ):
        back = Path.from_dict(json.loads(json.dumps(one.as_dict())))
        assert back == one
        assert all(type(back.strengths[name]) is type(one.strengths[name]) for name in one.strengths)


def test_what_is_not_taken_has_no_strength_and_says_what_was_best():
    chosen = Choice((0.01, 40.0), (NONE.point,), "lowest loss")
    choices = {"project": given(30.0), "refit": not_tried("no head"), "finetune": chosen}
    found = withheld(choices, "no change: not sure")
    assert found["project"] == choices["project"]
    assert found["refit"] == choices["refit"]
    assert found["finetune"].strength is None
    assert found["finetune"].reason == "not applied, best at 0.01 × 40: no change: not sure"
    assert found["finetune"].points == chosen.points

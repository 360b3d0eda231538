from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from verifix.recipe.candidates import Grid, Listed
from verifix.recipe.decision import (
    BEHIND,
    MINIMAL_GAIN,
    Choice,
    Raced,
    Scores,
    behind,
    choose,
    given,
    not_tried,
    point_of,
    spelled,
)

N = 100
BASE = Scores(torch.ones(N, dtype=torch.float64), 0.5)


def scores(mean: float, score: float = 0.6, spread: float = 0.0) -> Scores:
    wave = torch.linspace(-1, 1, N, dtype=torch.float64)
    return Scores(mean + spread * wave, score)


def run(losses, grid=None, score=lambda s: 0.6, spread=0.0):
    rounds: list[list[float]] = []

    def evaluate(strengths):
        rounds.append(list(strengths))
        return Raced({s: scores(losses(s), score(s), spread) for s in strengths})

    return choose(BASE, evaluate, grid or Grid(10, 1e6)), rounds


@pytest.mark.parametrize("optimum", [3.0, 20.0, 700.0, 4e4, 9e5, 4e6])
def test_the_search_comes_within_a_quarter_of_a_decade_and_stays_within_nine(optimum):
    log = torch.tensor(optimum).log10()
    choice, rounds = run(lambda s: float(0.1 + 0.1 * (torch.tensor(s).log10() - log).abs()))
    assert sum(map(len, rounds)) <= 9
    assert len(rounds) == 3
    assert abs(float(torch.tensor(choice.strength).log10() - log)) <= 0.251
    assert [p.strength for p in choice.points[1:]] == sorted(s for r in rounds for s in r)


def test_every_strength_is_tried_once():
    _, rounds = run(lambda s: 1.0)
    tried = [s for r in rounds for s in r]
    assert len(set(tried)) == len(tried)


def test_a_clear_gain_wins():
    choice, _ = run(lambda s: 0.5 + s * 1e-9)
    assert choice.strength is not None
    assert choice.points[0].strength is None
    assert choice.points[0].loss == 1.0


def test_the_lowest_loss_wins_however_unsure_it_is_and_whatever_the_score():
    """Whether a change is worth it is decided once, at the end of a path."""
    wave = torch.linspace(-1, 1, N, dtype=torch.float64)
    table = {1.0: Scores(0.5 + 20 * wave, 0.1), 2.0: Scores(0.9 + 0 * wave, 0.6)}
    choice = choose(BASE, lambda _: Raced(table), Listed((1.0, 2.0)))
    assert choice.strength == 1.0
    assert "strength 1 lowers the loss by 0.5000" in choice.reason
    assert "the score goes from 0.5000 to 0.1000" in choice.reason


def test_no_gain_at_all_does_not_win():
    for loss in (1.0, 2.0):
        choice, _ = run(lambda s, loss=loss: loss)
        assert choice.strength is None
        assert choice.reason == "no change: no strength lowers the loss"


def test_the_curve_is_labelled_for_what_it_is():
    choice, _ = run(lambda s: 0.5)
    assert "overstates the gain" in choice.as_dict()["note"]
    assert given(3.0).points == ()


def listed(table: dict, base: Scores = BASE):
    """Choose among strengths whose mean loss and score are given."""

    def evaluate(strengths):
        return Raced({s: scores(*table[s]) for s in strengths})

    return choose(base, evaluate, Listed(tuple(table)))


def test_a_gain_below_the_minimal_one_is_not_worth_a_change_however_sure():
    below = listed({1.0: (1 - 0.99 * MINIMAL_GAIN, 0.6)})
    above = listed({1.0: (1 - 1.01 * MINIMAL_GAIN, 0.6)})
    assert below.strength is None
    assert below.reason == "no change: no strength lowers the loss"
    assert above.strength == 1.0


def test_a_list_is_tried_in_one_round_and_a_grid_as_its_rounds_say():
    rounds: list[list] = []

    def evaluate(strengths):
        rounds.append(list(strengths))
        return Raced({s: scores(1.0) for s in strengths})

    for candidates in (Listed((3.0, 1.0)), Listed(((1e-3, 2.0), (1e-4, 8.0))), Grid(10, 1e6), Grid(1e-5, 1.0, (0.5,))):
        rounds.clear()
        choose(BASE, evaluate, candidates)
        assert list(map(len, rounds)) == candidates.rounds
        if isinstance(candidates, Listed):
            assert rounds == [list(candidates.strengths)]


def test_strengths_of_several_numbers_are_sorted_spelled_and_kept():
    table = {(1e-3, 40.0): (0.4, 0.6), (1e-4, 40.0): (0.6, 0.6), (1e-4, 10.0): (0.7, 0.6)}
    choice = listed(table)
    assert choice.strength == (1e-3, 40.0)
    assert [p.strength for p in choice.points] == [None, (1e-4, 10.0), (1e-4, 40.0), (1e-3, 40.0)]
    assert "strength 0.001 × 40 lowers" in choice.reason
    assert [spelled(s) for s in (None, 3.0, 1e6, 10**2.75, (1e-4, 10.0))] == [
        "no change", "3", "1e+06", "562.3", "0.0001 × 10",
    ]  # fmt: skip
    layered = replace(choice, layers={"a": {"rate": 1.0}}, estimated=2.0, seconds=3.0)
    back = Choice.from_dict(json.loads(json.dumps(layered.as_dict())))
    assert back == layered
    assert isinstance(back.points[1].strength, tuple)


def test_what_was_not_tried_says_why():
    choice = not_tried("no reason", 5.0)
    assert (choice.strength, choice.points, choice.reason) == (None, (), "not tried: no reason")
    assert Choice.from_dict(choice.as_dict()) == choice


@pytest.mark.parametrize(("count", "gained", "lost"), [(100, 5, 4), (1000, 50, 35), (100, 0, 0), (100, 20, 4)])
def test_the_error_of_a_score_counts_one_sample_more_that_is_won_and_one_that_is_lost(count, gained, lost):
    right = (torch.arange(count) < count // 2).double()
    after = right.clone()
    after[:lost], after[count - gained :] = 0.0, 1.0
    losses = torch.ones(count, dtype=torch.float64)
    before = Scores(losses, float(right.mean()), right)
    point = point_of(1.0, Scores(losses / 2, float(after.mean()), after), before)
    difference = torch.cat([after - right, torch.tensor([1.0, -1.0])])
    expected = (difference.square().mean() - difference.mean() ** 2).sqrt() / (count + 1) ** 0.5
    assert point.score_error == pytest.approx(float(expected))
    assert (point.loss, point.loss_gain, point.standard_error) == (0.5, 0.5, 0.0)
    only_mean = point_of(1.0, Scores(losses / 2, float(after.mean())), replace(before, values=None))
    assert only_mean == replace(point, score_error=0.0)


def test_strengths_that_lose_by_more_than_two_standard_errors_are_behind():
    wave = torch.linspace(-1, 1, N, dtype=torch.float64)
    error = float(wave.std() / N**0.5)
    best = torch.ones(N, dtype=torch.float64)
    losses = {
        None: best + 1,
        1.0: best,
        2.0: best + 1.99 * error + wave,
        3.0: best + 2.01 * error + wave,
        4.0: best + 5,
    }
    assert BEHIND == 2.0
    assert behind(losses, [1.0, 2.0, 3.0, 4.0], None) == pytest.approx({3.0: 2.01 * error, 4.0: 5.0})
    assert behind(losses, [1.0, 2.0], None) == {}
    no_change = {None: best, 1.0: best + 1}
    assert behind(no_change, [1.0], None) == {1.0: 1.0}


def test_samples_of_one_group_do_not_make_a_loss_clear():
    base = {None: torch.zeros(4).double(), 1.0: torch.tensor([1.0, 1.1, -0.3, -0.2]).double()}
    copies = {strength: loss.repeat_interleave(50) for strength, loss in base.items()}
    assert behind(base, [1.0], None) == {}
    assert behind(copies, [1.0], None) == {1.0: pytest.approx(0.4)}
    assert behind(copies, [1.0], torch.arange(4).repeat_interleave(50)) == {}


def raced(losses, lost):
    """Search where some strengths are dropped early, by what they lose to the best."""
    rounds: list[list[float]] = []

    def evaluate(strengths):
        rounds.append(list(strengths))
        gone = {s: lost(s) for s in strengths if lost(s)}
        return Raced({s: scores(losses(s)) for s in strengths if s not in gone}, gone)

    return choose(BASE, evaluate, Grid(10, 1e6)), rounds


def test_the_search_goes_on_from_what_is_left_towards_the_side_that_lost_less():
    log = lambda s: float(torch.tensor(s).log10())  # noqa: E731 - for two lines
    choice, rounds = raced(lambda s: 0.5, lambda s: 0.0 if s == 1e4 else 0.1 * abs(log(s) - 4.1))
    assert list(rounds[1]) == pytest.approx([10**3.5, 10**4.5])
    assert rounds[2] == pytest.approx([10**4.25])
    assert choice.strength == 1e4
    assert [p.strength for p in choice.points] == [None, 1e4]
    assert choice.dropped == tuple(sorted(s for r in rounds for s in r if s != 1e4))
    assert Choice.from_dict(json.loads(json.dumps(choice.as_dict()))) == choice


def test_if_all_are_dropped_nothing_changes_and_nothing_more_is_tried():
    choice, rounds = raced(lambda s: 0.5, lambda s: 1.0)
    assert choice.strength is None
    assert len(rounds) == 1
    assert choice.reason == "no change: every strength fell clearly behind on the first folds"

from __future__ import annotations

import pytest
import torch

from verifix.strength import Grid, Scores, choose, given

N = 100
BASE = Scores(torch.ones(N, dtype=torch.float64), 0.5)


def scores(mean: float, score: float = 0.6, spread: float = 0.0) -> Scores:
    wave = torch.linspace(-1, 1, N, dtype=torch.float64)
    return Scores(mean + spread * wave, score)


def run(losses, grid=None, score=lambda s: 0.6, spread=0.0):
    rounds: list[list[float]] = []

    def evaluate(strengths):
        rounds.append(list(strengths))
        return [scores(losses(s), score(s), spread) for s in strengths]

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


def test_a_gain_within_one_standard_error_does_not_win():
    error = float(torch.linspace(-1, 1, N).double().std() / N**0.5)
    inside, _ = run(lambda s: 1 - 0.99 * error, spread=1.0)
    outside, _ = run(lambda s: 1 - 1.01 * error, spread=1.0)
    assert inside.strength is None
    assert "not clear enough" in inside.reason
    assert outside.strength is not None


def test_a_worse_score_does_not_win():
    worse, _ = run(lambda s: 0.5, score=lambda s: 0.49)
    equal, _ = run(lambda s: 0.5, score=lambda s: 0.5)
    assert worse.strength is None
    assert "the score goes from 0.5000 to 0.4900" in worse.reason
    assert equal.strength is not None


def test_no_gain_at_all_does_not_win():
    for loss in (1.0, 2.0):
        choice, _ = run(lambda s, loss=loss: loss)
        assert choice.strength is None
        assert choice.reason == "no change: no strength lowers the loss"


def test_the_curve_is_labelled_for_what_it_is():
    choice, _ = run(lambda s: 0.5)
    assert "overstates the gain" in choice.as_dict()["note"]
    assert given(3.0).points == ()

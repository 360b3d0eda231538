from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from benchmarks import stopping_rule
from verifix.review.betting import BETS, bounds, log_capital, lower_bound, needed


def capital(y, means) -> float:
    """The capital of a mixture of bets, one value after the other."""
    total = 0.0
    for bet in BETS:
        own = 1.0
        for value, mean in zip(y, means, strict=True):
            own *= (1 + bet * value) / (1 + bet * mean)
        total += own / len(BETS)
    return total


def conditional(y, mean: float, total: int) -> list[float]:
    """The mean of each value, given those before, if they are drawn from so many without replacement."""
    return [min(max((total * mean - sum(y[:i])) / (total - i), 0.0), 1.0) for i in range(len(y))]


@pytest.mark.parametrize("seed", range(4))
def test_the_capital_is_that_of_the_bets_one_by_one(seed):
    y = np.random.default_rng(seed).choice([0, 0.5, 1], 30)
    for mean in (0.05, 0.4, 0.9):
        assert log_capital(y, mean) == pytest.approx(math.log(capital(y, [mean] * 30)))
        assert log_capital(y, mean, 50) == pytest.approx(math.log(capital(y, conditional(list(y), mean, 50))))
    means = np.random.default_rng(seed).uniform(0.1, 0.9, 30)
    found = stopping_rule.log_capitals(y, means)
    assert found[[0, 9, 29]] == pytest.approx([math.log(capital(y[:n], means[:n])) for n in (1, 10, 30)])
    found = stopping_rule.against(y, means)
    assert found[[0, 9, 29]] == pytest.approx([math.log(capital(y[:n], [means[n - 1]] * n)) for n in (1, 10, 30)])


@pytest.mark.parametrize("total", [None, 200])
def test_the_bound_is_where_the_capital_is_reached(total):
    y = np.random.default_rng(0).choice([0, 1], 30, p=[0.4, 0.6]).astype(float)
    low = lower_bound(y, 0.025, total)
    assert 0.2 < low < y.mean()
    assert log_capital(y, low - 1e-6, total) > math.log(40) > log_capital(y, low + 1e-6, total)
    found = bounds(2 * y - 1, -1.0, 1.0, total=total)
    assert (found.estimate, found.low) == pytest.approx((2 * y.mean() - 1, 2 * low - 1))
    assert found.high == pytest.approx(1 - 2 * lower_bound(1 - y, 0.025, total))


def ever_excluded(y, mean: float, alpha: float, total: int | None = None) -> bool:
    return any(log_capital(np.array(y[:n], dtype=float), mean, total) >= -math.log(alpha) for n in range(1, len(y) + 1))


@pytest.mark.parametrize(("mean", "alpha"), [(0.1, 0.2), (0.3, 0.4), (0.5, 0.25), (0.7, 0.6)])
def test_all_looks_together_hold_for_every_sequence(mean, alpha):
    """Every sequence of eight values, with its probability: no look may exclude the mean more often than alpha."""

    def wrong(y=()) -> float:
        if y and log_capital(np.array(y, dtype=float), mean) >= -math.log(alpha):
            return 1.0
        return 0.0 if len(y) == 8 else mean * wrong((*y, 1)) + (1 - mean) * wrong((*y, 0))

    assert 0 < wrong() <= alpha


@pytest.mark.parametrize("marked", [1, 3, 5])
def test_all_looks_together_hold_for_every_order_of_a_set(marked):
    """Every order of a set of nine, which is drawn to its end: then the bounds are its mean."""
    orders = list(itertools.combinations(range(9), marked))
    sequences = [[int(i in order) for i in range(9)] for order in orders]
    wrong = sum(ever_excluded(y, marked / 9, 0.3, 9) for y in sequences)
    assert wrong <= 0.3 * len(orders)
    found = bounds(np.array(sequences[0], dtype=float), 0.0, 1.0, total=9)
    assert (found.low, found.high) == pytest.approx((marked / 9, marked / 9))


def test_means_that_follow_the_past_are_covered_on_average():
    """Every sequence of seven outcomes, whose gain depends on those before, as corrections from them do."""

    def gain(past) -> float:
        return 0.3 * (sum(past) > 0) - 0.2 * (sum(past) < 0)

    def wrong(d=()) -> float:
        n, gains = len(d), [gain(d[:i]) for i in range(len(d))]
        if n:
            y, mean = (np.array(d) + 1) / 2, (sum(gains) / n + 1) / 2
            if max(log_capital(y, mean), log_capital(1 - y, 1 - mean)) >= math.log(1 / 0.2):
                return 1.0
        if n == 7:
            return 0.0
        shares = {1: (0.5 + gain(d)) / 2, -1: (0.5 - gain(d)) / 2, 0: 0.5}
        return sum(share * wrong((*d, x)) for x, share in shares.items())

    assert 0 < wrong() <= 0.4


def test_how_many_more_values_would_decide():
    rng = np.random.default_rng(1)
    y = (rng.choice([-1, 0, 1], 4000, p=[0.05, 0.75, 0.2]) + 1) / 2
    assert needed(np.zeros(0), 0.5, 0.025) is None
    assert needed(1 - y[:200], 0.5, 0.025) is None
    told = needed(y[:40], 0.5, 0.025)
    first = next(n for n in range(40, 4000) if needed(y[:n], 0.5, 0.025) == 0)
    assert told / 3 < first - 40 < 3 * told
    assert lower_bound(y[:first], 0.025) > 0.5 >= lower_bound(y[: first - 1], 0.025)

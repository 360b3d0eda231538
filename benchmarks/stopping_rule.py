"""How often the page of `verifix review` is wrong, if somebody looks after every label and stops when it pleases.

Run from the repository's root: ``python -m benchmarks.stopping_rule`` (a few minutes, one thread). Writes JSON to
benchmarks/results. The truth is known here:

- **Gain.** Samples come in blocks of 50, and each block is judged by the correction before it. A correction flips a
  share of the answers and has a true gain: for all corrections the same, rising with the block from nothing to a limit,
  or different at random and never above 0. "Improved" is counted if any look after 1 to 1,000 samples says so; beside
  it stands what the exact McNemar test at p < 0.025 says at the same looks.
- **Bounds.** The share of runs in which the bounds miss the mean of the true gains so far at any of the looks.
- **Rate of wrong labels.** Samples are drawn without replacement from sets of 1,000 and 10,000; the share of runs in
  which the bounds miss the rate of the set at any look, and their mean width at some looks.
"""

from __future__ import annotations

import json
import math
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import environment
from verifix.review.betting import BETS, LEVEL, bounds

OUT = Path("benchmarks/results/stopping_rule.json")
RUNS, SAMPLES, BLOCK = 1000, 1000, 50
ALPHA = (1 - LEVEL) / 2
FLIPS = (0.02, 0.1, 0.3)
GAINS = (0.03, 0.05, 0.1, 0.2)
RATES, SIZES, WIDTHS_AT, WIDTH_RUNS = (0.02, 0.1, 0.3), (1000, 10_000), (50, 100, 200, 500), 50

Array = np.ndarray[Any, Any]


def log_capitals(y: Array, means: Array) -> Array:
    """Return the logarithm of the capital after every value ``[n]``, where each mean was bet against ``[n]``.

    Parameters
    ----------
    y
        Values from 0 to 1 ``[n]``.
    means
        Their means, given the values before ``[n]``.

    Returns
    -------
    ndarray
        ``[n]``
    """
    gained = np.log1p(BETS[:, None] * y) - np.log1p(BETS[:, None] * means)
    return mixed(gained.cumsum(axis=1))


def against(y: Array, means: Array) -> Array:
    """Return the same of who bets at every look against one mean, which differs from look to look ``[n]``."""
    looks = np.arange(1, len(y) + 1)
    won = np.log1p(BETS[:, None] * y).cumsum(axis=1)
    return mixed(won - looks * np.log1p(BETS[:, None] * means))


def mixed(capitals: Array) -> Array:
    """Return the logarithm of the mean of capitals ``[bets, n]``, given by their logarithms, over the bets ``[n]``."""
    largest = capitals.max(axis=0)
    found: Array = largest + np.log(np.exp(capitals - largest).mean(axis=0))
    return found


def outcomes(generator: np.random.Generator, gains: Array, flips: float) -> Array:
    """Draw what corrections do to samples: 1, 0 or −1 with a mean of `gains` ``[n]``."""
    shares = np.maximum(flips, np.abs(gains))
    drawn = generator.random(len(gains))
    return np.where(drawn < (shares + gains) / 2, 1.0, np.where(drawn < shares, -1.0, 0.0))


def true_gains(generator: np.random.Generator, kind: str, gain: float) -> Array:
    """Return the true gain of the correction that judges each sample ``[SAMPLES]``."""
    block = np.arange(SAMPLES) // BLOCK
    if kind == "rising":
        return np.asarray(gain * (1 - np.exp(-block / 3)))
    if kind == "never above":
        return np.asarray(-np.abs(generator.normal(0, 0.03, block.max() + 1))[block])
    return np.full(SAMPLES, gain)


@cache
def mcnemar_boundary() -> Array:
    """Return for each number of flips ``[SAMPLES + 1]`` how many must be fixed for p < 0.025."""
    from scipy.stats import binom

    return np.asarray(binom.isf(0.025, np.arange(SAMPLES + 1), 0.5) + 1)


def gain_row(kind: str, gain: float, flips: float) -> dict[str, Any]:
    """Simulate one design."""
    bar, needed = -math.log(ALPHA), mcnemar_boundary()
    improved, harmful, naive, missed, first = 0, 0, 0, 0, []
    for run in range(RUNS):
        generator = np.random.default_rng([run, round(1000 * abs(gain)), round(100 * flips)])
        gains = true_gains(generator, kind, gain)
        d = outcomes(generator, gains, flips)
        half, looks = np.full(SAMPLES, 0.5), np.arange(1, SAMPLES + 1)
        up = log_capitals((1 + d) / 2, half) >= bar
        improved += bool(up.any())
        harmful += bool((log_capitals((1 - d) / 2, half) >= bar).any())
        fixed, broken = (d > 0).cumsum(), (d < 0).cumsum()
        naive += bool((fixed >= needed[fixed + broken])[fixed + broken > 0].any())
        mean = (1 + gains.cumsum() / looks) / 2
        missed += bool(((against((1 + d) / 2, mean) >= bar) | (against((1 - d) / 2, 1 - mean) >= bar)).any())
        first.append(int(up.argmax()) + 1 if up.any() else math.inf)
    median = float(np.median(first))
    return {
        "gains": kind,
        "gain": 100 * gain,
        "flips": 100 * flips,
        "improved": 100 * improved / RUNS,
        "harmful": 100 * harmful / RUNS,
        "mcnemar_at_every_look": 100 * naive / RUNS,
        "bounds_missed": 100 * missed / RUNS,
        "median_samples": median if math.isfinite(median) else None,
        "improved_after_200": 100 * float(np.mean(np.array(first) <= 200)),
    }


def rate_row(rate: float, size: int) -> dict[str, Any]:
    """Simulate the estimate of the rate of wrong labels in a set."""
    bar, missed = -math.log(ALPHA), 0
    widths: dict[int, list[float]] = {at: [] for at in WIDTHS_AT}
    for run in range(RUNS):
        generator = np.random.default_rng([run, size, round(100 * rate)])
        y = generator.permutation(np.arange(size) < rate * size)[:SAMPLES].astype(float)
        before = np.concatenate([[0.0], y.cumsum()[:-1]])
        means = (size * rate - before) / (size - np.arange(len(y)))
        wrong = (log_capitals(y, means) >= bar) | (log_capitals(1 - y, 1 - means) >= bar)
        missed += bool(wrong.any())
        for at in WIDTHS_AT if run < WIDTH_RUNS else ():
            found = bounds(y[:at], 0.0, 1.0, total=size)
            widths[at].append(100 * (found.high - found.low))
    return {
        "rate": 100 * rate,
        "size": size,
        "bounds_missed": 100 * missed / RUNS,
        **{f"width_after_{at}": float(np.mean(found)) for at, found in widths.items()},
    }


def main() -> None:
    """Simulate everything and write what came out."""
    none = [gain_row("equal", 0.0, flips) for flips in FLIPS]
    none += [gain_row("equal", -0.02, 0.1), gain_row("never above", 0.0, 0.1)]
    some = [gain_row("equal", gain, gain + 0.1) for gain in GAINS] + [gain_row("rising", 0.1, 0.2)]
    rates = [rate_row(rate, size) for size in SIZES for rate in RATES]
    record = {"runs": RUNS, "samples": SAMPLES, "no_gain": none, "gain": some, "rate": rates, **environment()}
    OUT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for row in (*none, *some, *rates):
        sys.stdout.write(f"{row}\n")


if __name__ == "__main__":
    main()

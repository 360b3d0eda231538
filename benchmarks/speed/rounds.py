"""Contenders that take turns: what a case is, and how it is measured."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from verifix.progress import Bar

Found = dict[str, Any]
"""What one run of a contender gives: its "seconds" at least."""


@dataclass(frozen=True)
class Ready:
    """A case that can be run.

    Attributes
    ----------
    run
        By the name of each contender, what runs it once.
    about
        What all its runs have in common, for the file.
    conclude
        Called after the last round; adds to `about`.
    """

    run: Mapping[str, Callable[[], Found]]
    about: Found = field(default_factory=dict)
    conclude: Callable[[], Found] = dict


@dataclass(frozen=True)
class Case:
    """Contenders that are compared with each other.

    Attributes
    ----------
    name
        What it is called in the file.
    guess
        By contender, in the order of the first round, roughly the seconds of one run on two cores: for the estimate.
    prepare
        Loads models and samples, and tells how to run each contender.
    most
        Contenders that take part in the first so many rounds only.
    """

    name: str
    guess: Mapping[str, float]
    prepare: Callable[[], Ready]
    most: Mapping[str, int] = field(default_factory=dict)

    def rounds_of(self, contender: str, rounds: int) -> int:
        """Return in how many of some rounds a contender takes part."""
        return min(rounds, self.most.get(contender, rounds))


def order(contenders: Sequence[str], number: int) -> list[str]:
    """Return who runs when in a round: the first of one round is the last of the next."""
    start = number % len(contenders)
    return [*contenders[start:], *contenders[:start]]


def measured(case: Case, rounds: int, guesses: Mapping[str, float], bar: Bar) -> Found:
    """Run a case, all contenders in every round.

    Parameters
    ----------
    case
        The case.
    rounds
        How many.
    guesses
        What each contender adds to the bar, per run; see `guesses_of`.
    bar
        Of seconds.

    Returns
    -------
    dict
        "about", and for each contender its "runs".
    """
    ready = case.prepare()
    runs: dict[str, list[Found]] = {name: [] for name in case.guess}
    for number in range(rounds):
        for name in order([*case.guess], number):
            if number < case.rounds_of(name, rounds):
                runs[name].append(ready.run[name]())
                bar.update(round(guesses[name]))
    return {"about": {**ready.about, **ready.conclude()}, "runs": runs}


def guesses_of(case: Case, earlier: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds to expect per run: those of an earlier measurement of the same case, else the case's guess."""
    runs = earlier.get(case.name, {}).get("runs", {})
    return {name: median(seconds(runs[name])) if runs.get(name) else guess for name, guess in case.guess.items()}


def timed(run: Callable[[], object]) -> Found:
    """Return the seconds of one run."""
    start = time.perf_counter()
    run()
    return {"seconds": time.perf_counter() - start}


def seconds(runs: Sequence[Found]) -> list[float]:
    """Return the seconds of some runs."""
    return [float(run["seconds"]) for run in runs]


def median(values: Sequence[float]) -> float:
    """Return the middle of some values, of which there is one at least."""
    ascending, half = sorted(values), len(values) // 2
    return ascending[half] if len(values) % 2 else (ascending[half - 1] + ascending[half]) / 2


def ratios(runs: Sequence[Found], unit: Sequence[Found]) -> list[float]:
    """Return how many times as long as the unit something took in each round that both took part in."""
    return [a / b for a, b in zip(seconds(runs), seconds(unit), strict=False)]


def growth(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the exponent p of the power law ``values ∝ sizes ** p`` that fits best on logarithmic axes.

    Parameters
    ----------
    sizes, values
        Two or more pairs of positive numbers.

    Returns
    -------
    float
        The slope by least squares.
    """
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in values]
    middle, height = sum(x) / len(x), sum(y) / len(y)
    return sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True)) / sum((a - middle) ** 2 for a in x)

"""What the proof of a gain accepts when the truth is known, by simulation.

Run from the repository's root: ``python -m benchmarks.proof_simulation``. Writes JSON to benchmarks/results. It
goes on where it was stopped; names of parts (``random``, ``class_balanced``, ``hard_weights``) after the command
measure these again.

**How truth is simulated.** No network is run. A model is right on 80% of all samples. There are 8 strengths to choose
from, and each turns the answer on 10% of all samples from right to wrong or back, so many more one way than the other
that accuracy changes by the truth: 0, −2 or +3 points, the same for all 8. Which samples these are is drawn afresh for
every verified set; two strengths agree on as many as a correlation of 0.5 between their gains makes. A right answer has
a loss of 0.2 nats on average, a wrong one of 1.4, and where the answer stays the loss moves by 0.1 (standard
deviation). These outcomes stand in for the inner cross-fitted scores, too.

**The proof** is nested: in each of 5 outer folds the strength is chosen by the project's own rule
(`verifix.recipe.decision`) on the other folds' samples, "no change" among the candidates; the held-out fold is answered
under that choice; all folds are pooled and `verifix.compare` gives the verdict. Accepted means "improved". Since every
strength has the same truth, what is reported should be the truth times the share of folds that chose a strength: that
is ``expected_gain``, and ``bias`` the difference.

**For contrast**, ``naive_gain`` is the best strength's gain on the very samples that chose it, and ``naive_accepted``
how often that is above 0; ``rule_accepted`` is how often the project's rule chooses a strength at all, without a test.

**Weighted.** Ten classes with shares from 30% to 1%, verified the same number of each. The three most frequent lose 2
points against the truth, the others gain 3.71, so that the truth is as above where the model is used, and 2 points
more in the verified set. The known shares go into `class_weights`; ``unweighted_accepted`` is what comes of leaving
them out.

**Hard weights.** No choice here, only the weighted test: classes that gain and lose, with shares that make up for it,
so that the truth is 0; some classes count much and have few samples. Counted is how often it says "improved".

**Copies, auto.** Real small networks; see `benchmarks.proof_networks`. On one core, ``copies`` takes a quarter of an
hour, ``auto_without_meaning`` and ``auto_coverage`` as long each, and what follows two minutes.

**Hard groups.** The test of groups alone, where the truth is 0. **Second look.** Answers flip either way alike; if the
first look proves nothing and shows a gain, as many samples are added as `samples_needed` says, 10,000 at most, and all
are looked at again.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.environment import environment
from benchmarks.proof_networks import JITTER, auto_coverage, auto_without_meaning, copies
from verifix import class_weights, compare
from verifix.evaluation.power import mcnemar_power, samples_needed
from verifix.evaluation.significance import (
    THRESHOLD,
    Outcomes,
    by_group,
    mcnemar,
    moments_of,
    p_values,
    strata_of,
)
from verifix.recipe.candidates import Listed
from verifix.recipe.decision import Raced, Scores, choose

OUT = Path("benchmarks/results/proof_simulation.json")
RUNS, SIZES, TRUTHS, STRENGTHS, FOLDS = 400, (50, 100, 200, 500, 1000), (0.0, -2.0, 3.0), 8, 5
RIGHT, CHANGED, AGREEMENT = 0.8, 0.1, 0.5
WEIGHTED_SIZES = (200, 1000)
SHARES = (0.3, 0.2, 0.15, 0.1, 0.08, 0.06, 0.05, 0.03, 0.02, 0.01)
SHIFTS = (-2.0, -2.0, -2.0, *[2.0 * 0.65 / 0.35] * 7)
"""Points that a class gains besides the truth; with the shares, they add up to 0."""

LOOK_RUNS, MOST_LOOKED_AT = 4000, 10_000
HARD_RUNS, HARD_SIZES = 2000, (50, 100, 200, 1000)
HARD: dict[str, tuple[list[float], list[float], list[tuple[float, float]]]] = {
    "two classes alike": ([0.5, 0.5], [0.9, 0.1], [(0.05, 0.05)] * 2),
    "the larger gains, the heavier loses": ([0.8, 0.2], [0.4, 0.6], [(0.15, 0.0), (0.0, 0.1)]),
    "a tenth of the samples is half of the weight": ([0.9, 0.1], [0.5, 0.5], [(0.1, 0.0), (0.0, 0.1)]),
    "the same, with more flips": ([0.9, 0.1], [0.5, 0.5], [(0.3, 0.0), (0.0, 0.3)]),
    "4% of the samples are half of the weight": ([0.96, 0.04], [0.5, 0.5], [(0.2, 0.0), (0.0, 0.2)]),
    "ten classes alike": ([0.1] * 10, [0.3, 0.2, *[0.0625] * 8], [(0.06, 0.06)] * 10),
    "ten classes, three lose": (
        [0.1] * 10,
        list(SHARES),
        [(0.04, 0.06)] * 3 + [(0.05 + 0.65 / 70, 0.05 - 0.65 / 70)] * 7,
    ),
    "ten classes, the heaviest loses": (
        [0.1] * 10,
        [0.55, *[0.05] * 9],
        [(0.0, 0.04), *[(0.04 * 0.55 / 0.45, 0.0)] * 9],
    ),
    "a hundred classes": ([0.01] * 100, [*[0.03] * 20, *[0.005] * 80], [(0.05, 0.05)] * 100),
}
"""By name: share of each class in the samples and in truth, and how often an answer is fixed and broken there."""

Array = np.ndarray[Any, Any]


def simulated(labels: Array, gains: Array, generator: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """Draw a verified set.

    Parameters
    ----------
    labels
        ``[n]``.
    gains
        True gain of each sample's class, in points ``[n]``.
    generator
        Where chance comes from.

    Returns
    -------
    right, losses : ndarray
        Before: whether each answer is right, and its loss, ``[n]``.
    right_after, losses_after : ndarray
        The same for each strength, ``[strengths, n]``.
    """
    n = len(labels)
    right = generator.random(n) < RIGHT
    turned = np.where(right, (CHANGED - gains / 100) / 2 / RIGHT, (CHANGED + gains / 100) / 2 / (1 - RIGHT))
    common = generator.random(n) < turned
    own = generator.random((STRENGTHS, n)) < turned
    flips = np.where(generator.random((STRENGTHS, n)) < math.sqrt(AGREEMENT), common, own)
    losses = loss_of(right, generator)
    moved = losses + generator.normal(0, 0.1, (STRENGTHS, n))
    right_after = right ^ flips
    return right, losses, right_after, np.where(flips, loss_of(right_after, generator), moved)


def loss_of(right: Array, generator: np.random.Generator) -> Array:
    """Draw the loss of right and of wrong answers."""
    return generator.exponential(0.2, right.shape) + np.where(right, 0.0, 1.2)


def chosen(right: Array, losses: Array, right_after: Array, losses_after: Array, rows: Array) -> int | None:
    """Choose a strength on some samples by the project's own rule; None for no change."""

    def scores(r: Array, loss: Array) -> Scores:
        values = torch.from_numpy(r[rows].astype(float))
        return Scores(torch.from_numpy(loss[rows]), float(values.mean()), values)

    tried = Raced({float(s): scores(right_after[s], losses_after[s]) for s in range(STRENGTHS)})
    found = choose(scores(right, losses), lambda _: tried, Listed(tuple(tried.scores))).strength
    return None if found is None else int(found)  # type: ignore[arg-type]


def proven(labels: Array, world: tuple[Array, Array, Array, Array], seed: int) -> tuple[Array, float]:
    """Answer each fold under the choice of the others: whether each answer is right, and the share of changed folds."""
    right, _, right_after, _ = world
    folds = np.random.default_rng(seed).permutation(len(labels)) % FOLDS
    after, kept = right.copy(), 0
    for fold in range(FOLDS):
        strength = chosen(*world, np.flatnonzero(folds != fold))
        if strength is not None:
            after[folds == fold] = right_after[strength][folds == fold]
            kept += int((folds == fold).sum())
    return after, kept / len(labels)


def one_run(labels: Array, gains: Array, truth: float, seed: int, weights: Array | None) -> dict[str, float]:
    """Simulate one verified set, and prove what it proves."""
    world = simulated(labels, gains, np.random.default_rng(seed))
    right, _, right_after, _ = world
    after, share = proven(labels, world, seed)
    found = compare(answers(right, labels), answers(after, labels), labels, weights=weights, seed=seed)
    naive = 100 * (np.average(right_after, axis=1, weights=weights) - np.average(right, weights=weights)).max()
    return {
        "accepted": found.verdict == "improved",
        "harmful": found.verdict == "harmful",
        "gain": found.gain.estimate,
        "expected_gain": truth * share,
        "bias": found.gain.estimate - truth * share,
        "covered": found.gain.low <= truth * share <= found.gain.high,
        "naive_gain": naive,
        "naive_accepted": naive > 0,
        "rule_accepted": chosen(*world, np.arange(len(labels))) is not None,
        "unweighted_gain": 100 * float(after.mean() - right.mean()),
        "unweighted_accepted": mcnemar(found.fixed, found.broken) < THRESHOLD,
    }


def answers(right: Array, labels: Array) -> Array:
    """Return predicted classes that are right where they are to be."""
    return np.where(right, labels, (labels + 1) % len(SHARES))


def summed_up(rows: list[dict[str, float]]) -> dict[str, float]:
    """Average the runs; shares in percent, with the standard error of the bias."""
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    percent = {key: 100 * value for key, value in means.items() if key.endswith(("accepted", "harmful", "covered"))}
    error = float(np.std([row["bias"] for row in rows], ddof=1)) / math.sqrt(len(rows))
    return means | percent | {"bias_error": error}


def random_sets(n: int, truth: float) -> dict[str, float]:
    """Prove gains on verified sets drawn at random."""
    labels = np.arange(n) % len(SHARES)
    gains = np.full(n, truth)
    rows = [one_run(labels, gains, truth, seed, None) for seed in range(RUNS)]
    found = summed_up([{k: v for k, v in row.items() if not k.startswith("unweighted")} for row in rows])
    wins, losses = (CHANGED + truth / 100) / 2, (CHANGED - truth / 100) / 2
    return {"samples": n, "truth": truth, "power_of_the_test_alone": 100 * mcnemar_power(n, wins, losses)} | found


def balanced_sets(n: int, truth: float) -> dict[str, float]:
    """Prove gains on verified sets with the same number of each class, whose shares are known."""
    labels = np.arange(n) % len(SHARES)
    gains = truth + np.array(SHIFTS)[labels]
    weights = class_weights(labels, SHARES)
    rows = [one_run(labels, gains, truth, seed, weights) for seed in range(RUNS)]
    return {"samples": n, "truth": truth} | summed_up(rows)


def hard_weights(name: str, n: int) -> dict[str, Any]:
    """Count how often the weighted test calls a gain of 0 an improvement."""
    drawn, shares, rates = HARD[name]
    counts = [max(1, round(part * n)) for part in drawn]
    labels = np.repeat(np.arange(len(counts)), counts)
    weights = class_weights(labels, shares)
    generator, accepted = np.random.default_rng(n), 0
    for run in range(HARD_RUNS):
        found = [
            generator.choice([1, -1, 0], count, p=[up, down, 1 - up - down])
            for count, (up, down) in zip(counts, rates, strict=True)
        ]
        outcomes = Outcomes(np.concatenate(found), weights, strata_of(labels, weights))
        if outcomes.gain > 1.9 * moments_of(outcomes).error:  # else p cannot be below the threshold
            accepted += p_values(outcomes, run)[0] < THRESHOLD
    return {"weights": name, "samples": n, "runs": HARD_RUNS, "accepted": 100 * accepted / HARD_RUNS}


def second_look(n: int) -> dict[str, Any]:
    """Count what chance passes if a gain that was not proven is looked at again with as many samples as advised."""
    generator, half = np.random.default_rng(n), CHANGED / 2
    once = twice = bonferroni = alone = again = 0
    for _ in range(LOOK_RUNS):
        up, down, same = generator.multinomial(n, [half, half, 1 - CHANGED])
        first = mcnemar(up, down)
        once, twice, bonferroni = once + (first < THRESHOLD), twice + (first < THRESHOLD), bonferroni + (first < 0.0125)
        alone += first < THRESHOLD
        if first < THRESHOLD or up <= down:
            continue
        again += 1
        outcomes = Outcomes(np.repeat([1, -1, 0], [up, down, same]), None, np.zeros(n, np.int64))
        more = min(samples_needed(outcomes) or n, MOST_LOOKED_AT) - n
        new_up, new_down, _ = generator.multinomial(more, [half, half, 1 - CHANGED])
        both = mcnemar(up + new_up, down + new_down)
        twice += both < THRESHOLD
        bonferroni += first >= 0.0125 and both < 0.0125
        alone += mcnemar(new_up, new_down) < THRESHOLD
    counts = {"one_look": once, "two_looks": twice, "two_at_half": bonferroni, "new_samples_alone": alone}
    return {"samples": n, "runs": LOOK_RUNS, "looked_again": 100 * again / LOOK_RUNS} | {
        f"{name}_accepted": 100 * count / LOOK_RUNS for name, count in counts.items()
    }


def hard_groups(name: str, n: int) -> dict[str, Any]:
    """Count how often the test of groups calls a gain of 0 an improvement."""
    size, rates = GROUPS[name]
    generator, accepted = np.random.default_rng(n), 0
    for run in range(HARD_RUNS):
        sizes = size(generator, n)
        groups = np.repeat(np.arange(n), sizes)
        kind = generator.choice(len(rates), n, p=[share for share, _ in rates])
        part = np.array([gain for _, gain in rates])[kind]  # the share of a group's answers that is gained or lost
        d = np.sign(part)[groups] * (generator.random(len(groups)) < np.abs(part)[groups])
        found = by_group(Outcomes(d.astype(np.int64), None, np.zeros(len(d), np.int64)), groups)
        accepted += p_values(found, run)[0] < THRESHOLD
    return {"groups": name, "number": n, "runs": HARD_RUNS, "accepted": 100 * accepted / HARD_RUNS}


GROUPS: dict[str, tuple[Callable[[np.random.Generator, int], Array], list[tuple[float, float]]]] = {
    "of five, changing as one": (lambda _, n: np.full(n, 5), [(0.8, 0.0), (0.1, 1.0), (0.1, -1.0)]),
    "of 1 to 20, changing in part": (lambda g, n: g.integers(1, 21, n), [(0.4, 0.0), (0.3, 0.3), (0.3, -0.3)]),
    "of ten, gaining one answer and rarely losing all": (lambda _, n: np.full(n, 10), [(10 / 11, 0.1), (1 / 11, -1.0)]),
    "of ten, losing one answer and rarely gaining all": (lambda _, n: np.full(n, 10), [(10 / 11, -0.1), (1 / 11, 1.0)]),
    "one of ten has half of the samples": (
        lambda _, n: np.where(np.arange(n) % 10, 2, 18),
        [(0.6, 0.0), (0.2, 0.5), (0.2, -0.5)],
    ),
}
"""By name: the sizes, and how often which share of a group's answers is gained or lost; the truth is 0."""

PARTS: dict[str, tuple[Callable[..., dict[str, Any]], list[tuple[Any, ...]]]] = {
    "random": (random_sets, [(n, truth) for truth in TRUTHS for n in SIZES]),
    "class_balanced": (balanced_sets, [(n, truth) for truth in TRUTHS for n in WEIGHTED_SIZES]),
    "copies": (
        copies,
        [(n, each, 0.0, False, "alpha=10") for n, each in ((100, 1), (100, 2), (40, 5), (20, 10))]
        + [(40, 5, JITTER, declared, recipe) for recipe in ("alpha=10", "refit") for declared in (False, True)],
    ),
    "hard_groups": (hard_groups, [(name, n) for name in GROUPS for n in (10, 20, 40, 200)]),
    "second_look": (second_look, [(50,), (100,), (200,), (500,)]),
    "auto_without_meaning": (auto_without_meaning, [()]),
    "auto_coverage": (auto_coverage, [()]),
    "hard_weights": (hard_weights, [(name, n) for name in HARD for n in HARD_SIZES if n >= len(HARD[name][0])]),
}
"""Each part: what measures one row, and of what."""


def main() -> None:
    """Simulate what is not in the file yet, or the parts that are named, and write every row as it is there."""
    torch.set_num_threads(1)
    known = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
    record = known | {"runs": RUNS, "strengths": STRENGTHS, "folds": FOLDS, "changed_percent": 100 * CHANGED}
    named = sys.argv[1:]
    for part in named or PARTS:
        measure, cases = PARTS[part]
        rows = record[part] = [] if named else known.get(part, [])
        for case in cases[len(rows) :]:
            rows.append(measure(*case))
            OUT.write_text(json.dumps(record | environment(), indent=2) + "\n", encoding="utf-8")
            numbers = (f"{key} {x:.2f}" if isinstance(x, float) else f"{x}" for key, x in rows[-1].items())
            sys.stdout.write(f"{part}: {', '.join(numbers)}\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()

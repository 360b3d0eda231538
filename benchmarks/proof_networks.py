"""What corrections and proofs of real small networks accept, for `benchmarks.proof_simulation`.

**The networks.** Inputs are points of eight dimensions around the centres of four classes. A network with one hidden
layer of 16 units has learned 200 of them by heart, 30% with wrong labels. There are ten such networks; run r takes
number r modulo ten. Accuracy "in truth" is that on 4,000 further points.

**Labels without meaning** are drawn at random, so that no correction can gain anything and none can lose. Where
samples are copies, or near-copies with a jitter, all of one input have one label, and the networks are not trained: the
folds, the test and the choice are at stake, not what was learned.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

import verifix
from verifix.proof import _judged
from verifix.recipe.context import Context
from verifix.recipe.search import Course

CLASSES, WIDTH, NETWORKS = 4, 8, 10
TRAINED_ON, WRONG, TRUTH_FROM = 200, 0.3, 4000
SPREAD = 1.2
"""Standard deviation of the centres; the points of a class lie around its own with 1."""

COPY_RUNS, NEAR_RUNS, JITTER = 400, 60, 0.05

AUTO_SAMPLES, NULL_RUNS, COVERAGE_RUNS = 100, 200, 60
QUIET: dict[str, Any] = {"progress": False, "check_labels": False}

Draw = Callable[[int], tuple[Tensor, Tensor]]


@functools.cache
def network(number: int) -> tuple[nn.Module, Draw]:
    """Train one of the networks; return it, and what draws labelled points."""
    generator = torch.Generator().manual_seed(number)
    centres = SPREAD * torch.randn(CLASSES, WIDTH, generator=generator)

    def draw(n: int) -> tuple[Tensor, Tensor]:
        y = torch.randint(CLASSES, (n,), generator=generator)
        return centres[y] + torch.randn(n, WIDTH, generator=generator), y

    x, y = draw(TRAINED_ON)
    wrong = torch.rand(TRAINED_ON, generator=generator) < WRONG
    labels = torch.where(wrong, torch.randint(CLASSES, y.shape, generator=generator), y)
    torch.manual_seed(number)
    model = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, CLASSES))
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(600):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model.eval(), draw


def right(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the percent of right answers."""
    with torch.no_grad():
        return 100 * float((model(x).argmax(dim=1) == y).double().mean())


def copies(inputs: int, each: int, jitter: float, declared: bool, recipe: str) -> dict[str, Any]:
    """Count how often labels without meaning are called an improvement, or the opposite, where inputs have copies."""
    settings = {"alpha": 10.0} if recipe == "alpha=10" else {"recipe": recipe}
    runs = COPY_RUNS if recipe == "alpha=10" else NEAR_RUNS
    found = []
    for run in range(runs):
        generator = torch.Generator().manual_seed(run)
        x = torch.randn(inputs, WIDTH, generator=generator).repeat_interleave(each, 0)
        x = x + jitter * torch.randn(x.shape, generator=generator)
        y = torch.randint(CLASSES, (inputs,), generator=generator).repeat_interleave(each)
        groups = torch.arange(inputs).repeat_interleave(each) if declared else None
        torch.manual_seed(run)
        model = nn.Sequential(nn.Linear(WIDTH, 16), nn.ReLU(), nn.Linear(16, CLASSES)).eval()
        found.append(
            verifix.prove(
                model, (x, y), seed=run, groups=groups, **settings, **QUIET, verified_from="unseen"
            ).comparison
        )
    return {
        "inputs": inputs,
        "each": each,
        "jitter": jitter,
        "declared": declared,
        "recipe": recipe,
        "runs": runs,
        "accepted": 100 * sum(each.verdict == "improved" for each in found) / runs,
        "harmful": 100 * sum(each.verdict == "harmful" for each in found) / runs,
        "doubted": 100 * sum(each.doubt is not None for each in found) / runs,
        "accepted_but_for_the_doubt": 100 * sum(each.p_better < each.threshold for each in found) / runs,
    }


def auto_without_meaning() -> dict[str, float]:
    """Count how often the default recipe changes a network by labels without meaning, and how often that is proved."""
    changed, proved = 0, 0
    for run in range(NULL_RUNS):
        model, draw = network(run % NETWORKS)
        (x, _), seed = draw(AUTO_SAMPLES), run
        y = torch.randint(CLASSES, (AUTO_SAMPLES,), generator=torch.Generator().manual_seed(run))
        correction = verifix.correct(model, (x, y), seed=seed, **QUIET)
        changed += correction.changed
        if correction.changed:  # else the command proves nothing, and writes nothing
            proved += verifix.prove(model, (x, y), seed=seed, **QUIET, verified_from="unseen").verdict == "improved"
    return {
        "samples": AUTO_SAMPLES,
        "runs": NULL_RUNS,
        "changed": 100 * changed / NULL_RUNS,
        "written_with_the_proof": 100 * proved / NULL_RUNS,
    }


def auto_coverage() -> dict[str, float]:
    """Count how often the interval of a nested proof covers what it is of, and the gain of the correction written."""
    rows = []
    for run in range(COVERAGE_RUNS):
        model, draw = network(run % NETWORKS)
        x, y = draw(AUTO_SAMPLES)
        truth = draw(TRUTH_FROM)
        gains: list[tuple[int, float]] = []

        def judged(
            untouched: Context,
            course: Course,
            model: nn.Module = model,
            truth: tuple[Tensor, Tensor] = truth,
            gains: list[tuple[int, float]] = gains,
        ) -> tuple[Tensor, Tensor]:
            with course.whole.corrected() as corrected:
                gains.append((len(course.whole.outside), right(corrected, *truth) - right(model, *truth)))
            return _judged(untouched, course)

        with patch("verifix.proof._judged", judged):
            found = verifix.prove(model, (x, y), seed=run, **QUIET, verified_from="unseen").comparison
        written = right(verifix.correct(model, (x, y), seed=run, **QUIET).model, *truth) - right(model, *truth)
        counts, own = zip(*gains, strict=True)
        procedure = float(np.average(own, weights=counts))
        rows.append({
            "accepted": 100.0 * (found.verdict == "improved"),
            "gain": found.gain.estimate,
            "gain_of_the_five": procedure,
            "gain_of_the_written": written,
            "covers_the_five": 100.0 * (found.gain.low <= procedure <= found.gain.high),
            "covers_the_written": 100.0 * (found.gain.low <= written <= found.gain.high),
        })  # fmt: skip
    means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
    return {"samples": AUTO_SAMPLES, "runs": COVERAGE_RUNS} | means

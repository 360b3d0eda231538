"""How long a stage will take, estimated from the pace of this machine, and whether that is within the budget."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from verifix.capture.collect import moments_device
from verifix.recipe.candidates import Candidates
from verifix.recipe.context import Context
from verifix.recipe.stages import Stage

SIDE = 1024
"""Side of the matrices whose product is timed."""

TIMED = 64
"""Samples on which the model is timed."""


@dataclass(frozen=True)
class Pace:
    """What this machine does per second: floating-point operations in float64, and samples run forward."""

    flops: float
    runs: float


def measure(context: Context) -> Pace:
    """Time a matrix product and a batch, each once to warm up and once to measure.

    Parameters
    ----------
    context
        The model, and samples to run.

    Returns
    -------
    Pace
        Of linear algebra where moments live, and of the model where it is.
    """
    square = torch.rand(SIDE, SIDE, dtype=torch.float64, device=moments_device(context.run.device))
    batch = context.indices[:TIMED]
    product = min(_timed(lambda: float((square @ square)[0, 0])) for _ in range(2))
    run = min(_timed(lambda: context.predict(batch, {})) for _ in range(2))
    return Pace(2 * SIDE**3 / product, len(batch) / run)


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return max(time.perf_counter() - start, 1e-9)


def estimate(whole: Stage, parts: Sequence[Stage], candidates: Candidates, pace: Pace) -> float:
    """Estimate the seconds that cross-fitting a stage and fitting it on all samples takes.

    Parameters
    ----------
    whole, parts
        Its fitters, of all samples and of those without each fold.
    candidates
        The strengths it will try.
    pace
        What the machine does.

    Returns
    -------
    float
        Seconds.
    """
    flops = runs = 0.0
    for fitter, rounds in [(whole, [1]), *((part, candidates.rounds) for part in parts)]:
        cost, context = fitter.cost(), fitter.context
        further = sum(rounds) - len(rounds)
        flops += len(rounds) * cost.flops + further * cost.flops_again
        runs += len(rounds) * cost.runs + further * cost.runs_again
        held_out = sum(map(len, context.run.members)) - len(context.indices)
        runs += sum(rounds) * held_out
    return flops / pace.flops + runs / pace.runs

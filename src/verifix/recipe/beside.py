"""One pass over the inputs whose labels are not known: their moments beside those of the verified samples."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch

from verifix.capture.collect import Collected
from verifix.capture.input_statistics import watching_first_norm
from verifix.model import ranks
from verifix.model.batching import with_smaller_batches
from verifix.model.samples import Samples
from verifix.model.unlabelled import Unlabelled, named, part_of
from verifix.options import CorrectOptions
from verifix.recipe.context import Context, Run

SHARE = 1 / 4
"""Part of the budget that the pass over unlabelled inputs may take."""

TRIAL = 64
"""Inputs by which the time of all is foreseen."""


def affordable(whole: Context, unlabelled: Unlabelled, options: CorrectOptions) -> tuple[Unlabelled, str]:
    """Return as many of the inputs as one pass can take in its share of the budget, drawn at random.

    Parameters
    ----------
    whole
        A context that no stage has changed.
    unlabelled
        The inputs.
    options
        The settings.

    Returns
    -------
    unlabelled : Unlabelled
        All of them without a budget.
    remark : str
        How many are used; empty if all are.
    """
    run, count, budget = whole.run, len(unlabelled), options.budget_seconds
    if math.isinf(budget) or count <= TRIAL:
        return unlabelled, ""
    samples = _as_verified(unlabelled.samples, run)
    begun = time.perf_counter()
    with named("unlabelled"):
        run.collect(samples, [range(TRIAL)], min(run.batch_size, TRIAL), answered=False)
    each = ranks.from_first(time.perf_counter() - begun) / TRIAL / ranks.size()
    most = max(TRIAL, int(SHARE * budget / each))
    if most >= count:
        return unlabelled, ""
    drawn = sorted(torch.randperm(count, generator=torch.Generator().manual_seed(run.seed))[:most].tolist())
    given = None if unlabelled.given is None else unlabelled.given[drawn]
    remark = (
        f"{most:,} of the {count:,} unlabelled inputs are used, drawn at random: a pass over all of them would take "
        "longer than a quarter of the budget."
    )
    return Unlabelled(part_of(unlabelled.samples, drawn), given), remark


def with_unlabelled(whole: Context, unlabelled: Unlabelled, options: CorrectOptions) -> tuple[Context, str]:
    """Add inputs whose labels are not known, and their moments, to a context that no stage has changed.

    Parameters
    ----------
    whole
        The context.
    unlabelled
        The inputs, none of which is a verified sample.
    options
        The settings.

    Returns
    -------
    whole : Context
        With `Run.unlabelled` and `Run.beside`.
    doubt : str
        What is odd about the inputs; empty if nothing is.

    Raises
    ------
    DataError
        If the model cannot run on the inputs, or something is not finite.
    """
    run = whole.run
    samples = _as_verified(unlabelled.samples, run)

    def passed(size: int) -> Collected:
        return run.collect(samples, [range(len(samples))], size, show=options.progress, shared=True, answered=False)

    with named("unlabelled"), watching_first_norm(run.model) as seen:
        collected, _ = with_smaller_batches(passed, run.batch_size, options)
        doubt = seen.gathered(run.model).remark()
    known = replace(unlabelled, samples=samples)
    return replace(whole, run=replace(run, unlabelled=known, beside=collected.folds[0])), doubt


def _as_verified(samples: Samples, run: Run) -> Samples:
    """Return samples that enter the model, and whose outputs are read, as those of the verified samples."""
    return replace(samples, forward=run.samples.forward, outputs=run.samples.outputs)

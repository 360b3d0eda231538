"""Whether a correction from few verified samples does harm: 20 random subsets of each size, on networks of three tasks.

Run from the repository's root: ``python -m benchmarks.subsets digits texts cifar10``. Only verified samples are used.
One line per subset goes into benchmarks/results/subsets.jsonl, and what is there is not run again; then the table is
written to subsets.json and printed. ``--quick`` takes two subsets of 50.

``digits``, ``texts``
    The MLP and the small BERT of `benchmarks.tasks` with 30% wrong labels. Subset s is drawn from the 400 verified
    samples of the network of seed 40 + s mod 5, and scored on the unseen samples of that seed.
``cifar10``
    The VGG11-BN that comes with the images, corrected from subsets of the 1,000 verified images and scored on the 4,000
    images of the pool, which nothing else uses. Its recipe and budget are given by ``--recipe`` and ``--budget``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch
from torch import nn

from benchmarks.cells import percent_right
from benchmarks.coverage_models import declare_missing_operators
from benchmarks.records import Record, concluded
from benchmarks.tasks import case, cifar10_verified_and_pool
from verifix import correct
from verifix.model.answers import predicted
from verifix.model.samples import Samples

OUT = Path("benchmarks/results/subsets.jsonl")
SUBSETS, SIZES, NETWORKS, FIRST = 20, (50, 100, 200), 5, 40
ARCHITECTURES = {"digits": "mlp", "texts": "bert", "cifar10": "vgg11_bn"}
POOL = 400
HARM = 0.5
"""Points that a subset may lose without being counted as harmed."""


@dataclass(frozen=True)
class Job:
    """One subset.

    Attributes
    ----------
    task
        A key of `ARCHITECTURES`.
    size
        Verified samples.
    subset
        Number of the subset, and seed of its draw.
    recipe, budget
        Of the correction; no budget is empty.
    """

    task: str
    size: int
    subset: int
    recipe: str = "auto"
    budget: str = ""


@lru_cache(maxsize=2)
def network(task: str, seed: int, shared: Path, cache: Path | None) -> tuple[nn.Module, Samples, Samples]:
    """Return a network, the verified samples that subsets are drawn from, and the unseen ones."""
    if task == "cifar10":
        return cifar10_verified_and_pool(shared)
    problem, unseen = case(task, ARCHITECTURES[task], "symmetric", 0.3, POOL, seed, shared, cache)
    return problem.model, problem.verified, unseen


def run(job: Job, shared: Path, cache: Path | None) -> Record:
    """Correct with one subset, and score.

    Parameters
    ----------
    job
        The subset.
    shared
        Folder with data and networks.
    cache
        Folder for trained networks.

    Returns
    -------
    dict
        Accuracies in percent, the gain in points, what was kept, seconds.
    """
    library = declare_missing_operators() if job.task == "texts" else None
    seed = 0 if job.task == "cifar10" else FIRST + job.subset % NETWORKS
    model, verified, unseen = network(job.task, seed, shared, cache)
    chosen = torch.randperm(len(verified), generator=torch.Generator().manual_seed(job.subset))[: job.size]
    settings: dict[str, Any] = {"budget": job.budget} if job.budget else {}
    start = time.perf_counter()
    correction = correct(
        model, verified.subset(chosen.tolist()), recipe=job.recipe, seed=job.subset, progress=False, **settings
    )
    seconds = time.perf_counter() - start
    before, after = (
        percent_right(predicted(one, unseen, range(len(unseen))), unseen) for one in (model, correction.model)
    )
    del library
    scores = {"before": before, "after": after, "gain": after - before}
    return {"network": seed, **scores, "kept": correction.kept, "seconds": round(seconds, 1)}


def summed_up(records: Sequence[Record]) -> list[Record]:
    """Return one row per task, recipe, budget and size: how many subsets lose, and what they gain, in points."""
    rows = []
    for key in dict.fromkeys((r["task"], r["recipe"], r["budget"], r["size"]) for r in sorted(records, key=_order)):
        own = [r for r in records if (r["task"], r["recipe"], r["budget"], r["size"]) == key]
        gains = [r["gain"] for r in own]
        rows.append(
            {
                **dict(zip(("task", "recipe", "budget", "verified"), key, strict=True)),
                "subsets": len(own),
                "before": fmean(r["before"] for r in own),
                f"lost over {HARM}": sum(gain < -HARM for gain in gains),
                "unchanged": sum(r["kept"] == "no change" for r in own),
                "worst": min(gains),
                "median": median(gains),
                "mean": fmean(gains),
                "seconds": fmean(r["seconds"] for r in own),
            }
        )
    return rows


def _order(record: Record) -> tuple[int, str, str, int]:
    return list(ARCHITECTURES).index(record["task"]), record["recipe"], record["budget"], record["size"]


def main(words: Sequence[str] | None = None) -> int:
    """Measure what is missing, and write the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.subsets", description=__doc__.split("\n")[0])
    parser.add_argument("tasks", nargs="+", choices=list(ARCHITECTURES), metavar="TASK", help=", ".join(ARCHITECTURES))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--subsets", type=int, default=SUBSETS)
    parser.add_argument("--recipe", default="auto")
    parser.add_argument("--budget", default="", help="as in verifix correct, such as 5min")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each; 1 uses all threads")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data and networks")
    parser.add_argument("--cache", type=Path, help="folder for trained networks, to train each of them once")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--quick", action="store_true", help="two subsets of 50; give --out")
    arguments = parser.parse_args(words)
    if arguments.quick:
        arguments.sizes, arguments.subsets, arguments.workers = [50], 2, 1
    jobs = [
        Job(task, size, subset, arguments.recipe, arguments.budget)
        for task in arguments.tasks
        for subset in range(arguments.subsets)
        for size in arguments.sizes
    ]
    one = partial(run, shared=arguments.shared, cache=arguments.cache)
    return concluded(arguments.out, jobs, one, arguments.workers, summed_up)[1]


if __name__ == "__main__":
    sys.exit(main())

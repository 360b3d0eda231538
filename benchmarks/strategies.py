"""What a verified sample is worth, by how it was selected: the gain of a correction over the number of samples.

Run from the repository's root: ``python -m benchmarks.strategies digits cifar10``. One line per run goes into
benchmarks/results/strategies.jsonl, and what is there is not run again; then the table is written to strategies.json
and into docs/selection.md, with a plot beside it. ``--quick`` is one seed of 50 digits, with a network that is hardly
trained.

``digits``   scikit-learn's, seeds 200 to 204: 600 for training with 30% wrong labels (the MLP of the demo), 700 to
             select from, whose given labels are wrong as often, 497 unseen.
``cifar10``  the small ResNet of `benchmarks.tasks`, seeds 0 to 2, trained on 5,000 images with the labels that one
             person gave each (``label_human_random1``, 17% wrong). 4,000 images of the pool to select from, with the
             labels of one person as well; 5,000 further training images, with their true labels, are unseen. The test
             file is not read: the default strategy is chosen by what comes out here. Needs the folder of shared files.

Every strategy selects as `verifix.select` does: a random part, the same for all strategies of a seed, and the rest by
the strategy (``--share`` of the samples at random, half by default). A reviewer who makes no mistakes verifies them.
The default recipe corrects (``--recipe``). ``wrong %`` is the share of selected samples with a wrong label.
"""

from __future__ import annotations

import argparse
import itertools
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.cells import percent_right
from benchmarks.choice_simulation import samples_of
from benchmarks.records import Record, concluded, table
from benchmarks.tasks import case, cifar10_to_select_from
from verifix import correct, select
from verifix.cli.demo.training import mlp, train, wrong_labels
from verifix.model.answers import predicted
from verifix.model.samples import Samples, read_samples
from verifix.selection.options import DEFAULT_STRATEGY, STRATEGIES

OUT, PAGE = Path("benchmarks/results/strategies.jsonl"), Path("docs/selection.md")
PLOT = Path("docs/images/strategies.svg")
NAMED = ("task", "recipe", "share", "size")
"""What two runs have in common whose gains are compared, besides the seed."""

BEGIN, END = "<!-- begin of the table; python -m benchmarks.strategies -->", "<!-- end of the table -->"
TRAINING, POOL, WRONG, EPOCHS = 600, 700, 0.3, 60
AUTO = re.compile(r"\| `auto` \| the default: `\w+` \|")
SHARE = 0.5

Strategy = Literal["random", "balanced", "uncertain", "suspect", "spread"]


@dataclass(frozen=True)
class Task:
    """A row of `TASKS`: title, numbers of verified samples, seeds."""

    title: str
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]


TASKS = {
    "digits": Task("handwritten digits, MLP", (50, 100, 200, 400), (200, 201, 202, 203, 204)),
    "cifar10": Task("CIFAR-10, small ResNet", (50, 100, 200, 500, 1000), (0, 1, 2)),
}


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes
    ----------
    task, strategy
        Keys of `TASKS`, and of `STRATEGIES`.
    size
        Verified samples.
    seed
        Of everything that is drawn.
    share
        How many of them are drawn at random.
    recipe
        Of the correction.
    epochs
        Of the training of the digits' network.
    """

    task: str
    strategy: Strategy
    size: int
    seed: int
    share: float = SHARE
    recipe: str = "auto"
    epochs: int = EPOCHS


@dataclass(frozen=True, eq=False)
class Problem:
    """A network, and what there is to select from.

    Attributes
    ----------
    model
        The network, trained on wrong labels.
    inputs, given, truth
        Of the samples to select from: inputs, given and true labels.
    unseen
        What measures the gain.
    """

    model: nn.Module
    inputs: Tensor
    given: Tensor
    truth: Tensor
    unseen: Samples


@lru_cache(maxsize=1)
def problem(task: str, seed: int, epochs: int, shared: Path, cache: Path | None) -> Problem:
    """Return the network of a seed and its samples."""
    if task == "cifar10":
        (inputs, truth), given, unseen = cifar10_to_select_from(shared)
        model = case("cifar10", "resnet", "human", 0.172, 2, seed, shared, cache)[0].model
        assert isinstance(inputs, Tensor)
        return Problem(model, inputs, given, truth, unseen)
    x, y = samples_of("digits", seed)
    given = torch.cat([wrong_labels(part, WRONG, 10, seed) for part in (y[:TRAINING], y[TRAINING : TRAINING + POOL])])
    untrained = mlp((64, 256, 256, 10), seed, norm=True)
    model = train(untrained, x[:TRAINING], given[:TRAINING], epochs=epochs, rate=0.01, batch=50, seed=seed)
    pool, rest = slice(TRAINING, TRAINING + POOL), slice(TRAINING + POOL, None)
    return Problem(model, x[pool], given[pool], y[pool], read_samples((x[rest], y[rest])))


def run(job: Job, shared: Path, cache: Path | None) -> Record:
    """Select samples, correct from their true labels, and measure.

    Parameters
    ----------
    job
        The run.
    shared
        Folder with data.
    cache
        Folder for trained networks.

    Returns
    -------
    dict
        Accuracies on the unseen samples in percent, the gain in points, percent of the selected labels that were wrong,
        what was kept, and seconds of selection and correction.
    """
    about = problem(job.task, job.seed, job.epochs, shared, cache)
    everything = range(len(about.unseen))
    before = percent_right(predicted(about.model, about.unseen, everything), about.unseen)
    start = time.perf_counter()
    chosen = select(
        about.model,
        (about.inputs, about.given),
        strategy=job.strategy,
        count=job.size,
        random_share=job.share,
        seed=job.seed,
        progress=False,
    )
    middle = time.perf_counter()
    ids = sorted(chosen.indices)
    verified = about.inputs[ids], about.truth[ids]
    how = {"recipe": job.recipe, "seed": job.seed, "check_labels": False, "progress": False}
    correction = correct(about.model, verified, **how)  # type: ignore[arg-type]
    end = time.perf_counter()
    after = percent_right(predicted(correction.model, about.unseen, everything), about.unseen)
    return {
        "before": before,
        "after": after,
        "gain": after - before,
        "wrong": 100 * float((about.given[ids] != about.truth[ids]).double().mean()),
        "kept": correction.kept,
        "seconds_selecting": round(middle - start, 2),
        "seconds_correcting": round(end - middle, 2),
    }


def summed_up(records: Sequence[Record]) -> list[Record]:
    """Return one row per task, recipe, share, size and strategy: means over seeds, and what it adds to random."""
    rows = []
    by_key = {(*(r[name] for name in NAMED), r["strategy"], r["seed"]): r for r in records}
    for task, row in TASKS.items():
        ways = sorted({(r["recipe"], r["share"]) for r in records if r["task"] == task})
        for (recipe, share), size, strategy in itertools.product(ways, row.sizes, STRATEGIES):
            key = task, recipe, share, size
            found = [by_key.get((*key, strategy, seed)) for seed in row.seeds]
            own = [record for record in found if record is not None]
            plain = [by_key.get((*key, "random", record["seed"])) for record in own]
            if own:
                rows.append(_row(key, strategy, own, plain))
    return rows


def _row(
    key: tuple[str, str, float, int], strategy: str, own: Sequence[Record], plain: Sequence[Record | None]
) -> Record:
    gains = [r["gain"] for r in own]
    more = [gain - other["gain"] for gain, other in zip(gains, plain, strict=True) if other is not None]
    task, recipe, share, size = key
    return {
        "task": task,
        "recipe": recipe,
        "share": share,
        "verified": size,
        "strategy": strategy,
        "seeds": len(own),
        "wrong %": fmean(r["wrong"] for r in own),
        "before": fmean(r["before"] for r in own),
        "gain": fmean(gains),
        "± of the mean": stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else "",
        "more than random": fmean(more) if more else "",
        "seconds": fmean(r["seconds_selecting"] + r["seconds_correcting"] for r in own),
    }


def _usual(row: Record) -> bool:
    return bool(row["share"] == SHARE and row["recipe"] == "auto")


def standings(rows: Sequence[Record]) -> list[Record]:
    """Return, for each strategy, what it adds to random on average over the sizes of each task; the best one first."""
    found = []
    for strategy in STRATEGIES:
        own = [row for row in rows if row["strategy"] == strategy and _usual(row)]
        means = {
            task: fmean(row["more than random"] for row in own if row["task"] == task)
            for task in TASKS
            if any(row["task"] == task and row["more than random"] != "" for row in own)
        }
        if means:
            found.append({"strategy": strategy, **means, "mean": fmean(means.values())})
    return sorted(found, key=lambda row: -row["mean"])


def draw(rows: Sequence[Record], path: Path) -> None:
    """Draw the gain over the number of verified samples, one panel per task and one line per strategy."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    tasks = [task for task in TASKS if any(row["task"] == task and _usual(row) for row in rows)]
    with rc_context({"svg.hashsalt": "verifix", "svg.fonttype": "path"}):
        figure = Figure(figsize=(4.6 * len(tasks), 3.6), layout="constrained")
        for axes, task in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks, strict=True):
            for strategy, marker in zip(STRATEGIES, "osD^v", strict=True):
                own = [r for r in rows if (r["task"], r["strategy"]) == (task, strategy) and _usual(r)]
                points = [(r["verified"], r["gain"], r["± of the mean"] or 0.0) for r in own]
                if points:
                    x, y, error = zip(*points, strict=True)
                    axes.errorbar(x, y, yerr=error, label=strategy, marker=marker, markersize=4, capsize=2)
            axes.set(title=TASKS[task].title, xlabel="verified samples", ylabel="points gained on unseen samples")
            axes.set_xscale("log")
            axes.set_xticks(TASKS[task].sizes, [f"{size:,}" for size in TASKS[task].sizes])
            axes.minorticks_off()
            axes.axhline(0, color="gray", linewidth=0.8)
            axes.legend(fontsize="small")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def write_page(rows: Sequence[Record], page: Path = PAGE, plot: Path = PLOT) -> None:
    """Write the plot, and tables and plot into their page."""
    draw(rows, plot)
    picture = f"![Points gained over the number of verified samples, by strategy]({plot.relative_to(page.parent)})"
    text = AUTO.sub(f"| `auto` | the default: `{DEFAULT_STRATEGY}` |", page.read_text(encoding="utf-8"))
    before, rest = text.split(BEGIN)
    body = "\n\n".join([picture, "What each adds to random, in points:", table(standings(rows)), table(rows)])
    page.write_text(f"{before}{BEGIN}\n\n{body}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


def jobs(arguments: argparse.Namespace) -> list[Job]:
    """Return the runs that were asked for, all strategies and sizes of a seed before the next seed."""
    return [
        Job(task, strategy, size, seed, arguments.share, arguments.recipe, arguments.epochs)
        for task in arguments.tasks
        for seed in TASKS[task].seeds[: 1 if arguments.quick else None]
        for size in TASKS[task].sizes[: 1 if arguments.quick else None]
        for strategy in arguments.strategies
        if (not arguments.seeds or seed in arguments.seeds) and (not arguments.sizes or size in arguments.sizes)
    ]


def main(words: Sequence[str] | None = None) -> int:
    """Measure what is missing, and write table, plot and page; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strategies", description=__doc__.split("\n")[0])
    parser.add_argument("tasks", nargs="+", choices=list(TASKS), metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES), metavar="STRATEGY")
    parser.add_argument("--sizes", nargs="+", type=int, help="only these numbers of verified samples")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these")
    parser.add_argument("--share", type=float, default=SHARE, help="of the samples that are drawn at random")
    parser.add_argument("--recipe", default="auto", help="of the correction")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each; 1 uses all threads")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data")
    parser.add_argument("--cache", type=Path, help="folder for trained networks, to train each of them once")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--quick", action="store_true", help="one seed, the fewest samples, hardly trained; give --out")
    arguments = parser.parse_args(words)
    arguments.epochs = EPOCHS
    if arguments.quick:
        arguments.workers, arguments.epochs = 1, 2
    one = partial(run, shared=arguments.shared, cache=arguments.cache)
    rows, code = concluded(arguments.out, jobs(arguments), one, arguments.workers, summed_up)
    sys.stdout.write(f"\n{table(standings(rows))}\n")
    if arguments.out == OUT:
        write_page(rows)
    return code


if __name__ == "__main__":
    sys.exit(main())

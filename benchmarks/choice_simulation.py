"""What the default rule accepts and refuses where the truth is known, on small networks.

Run from the repository's root: ``python -m benchmarks.choice_simulation``. One line per run goes into
benchmarks/results/choice_simulation.jsonl, and what is there is not run again; then the table is written to
choice_simulation.json and printed. ``--quick`` is a look at a few runs of networks that are hardly trained.

**Networks.** MLPs with BatchNorm that have learned 600 samples by heart. ``digits``: scikit-learn's, 600 to verify and
597 unseen. ``patterns``: ten patterns of 64 numbers in noise (`benchmarks.label_guards.patterns`), 1,000 to verify and
4,000 unseen. Each seed, from 100 on, has samples, labels and a network of its own; sizes take the first verified
samples.

**Arms.** What is true of each:

``permuted``  30% wrong labels learned; the verified labels are permuted, so that nothing can be learned from them.
``clean``     no wrong label learned: there is next to nothing to gain.
``harm``      no wrong label learned, but 30% of the verified ones are wrong, evenly: whatever is learned from these
              labels costs accuracy, and the same labels, held out, are what the rule has to notice it by.
``gain 2``, ``gain 5``, ``gain 10``  so many wrong labels learned that a correction gains about so many points.

``forced`` in a record is the gain of a correction without a choice, 6,400 samples seen in a fine-tuning at a rate of
1e-3: what the arm is about, whether or not the rule changes anything. ``changed`` says whether it does, and ``gain`` is
what that gains on the unseen samples. The check of the label order is off, so that the rule alone decides.

**Inputs.** ``verified``: the verified samples alone; ``unlabelled``: the training inputs besides; ``noisy``: the
training samples with their given labels.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from benchmarks.cells import percent_right
from benchmarks.label_guards import patterns
from benchmarks.methods.base import Case, Tool, contexts, predictor
from benchmarks.methods.finetune import FineTuning
from benchmarks.records import Record, concluded, wilson
from benchmarks.tasks import stratified_order
from verifix import correct
from verifix.cli.demo.training import mlp, train, wrong_labels
from verifix.model.answers import predicted
from verifix.model.borrow import borrowed
from verifix.model.clone import copy_model
from verifix.model.samples import Samples, read_samples

OUT = Path("benchmarks/results/choice_simulation.jsonl")
TRAINING, CLASSES, EPOCHS = 600, 10, 60
SIZES = {"digits": (50, 100, 200, 600), "patterns": (50, 100, 200, 600, 1000)}
SEEDS, FIRST = 20, 100
FORCED_RATE, FORCED_SEEN = 1e-3, 6400
INPUTS = {
    "verified": Tool("auto"),
    "unlabelled": Tool("auto", unlabelled=True),
    "noisy": Tool("auto", noisy=True),
}


@dataclass(frozen=True)
class Arm:
    """What is true of a network and of the verified labels.

    Attributes
    ----------
    learned
        Share of wrong labels that the network has learned, by data.
    verified
        Share of verified labels that are wrong.
    permuted
        Whether the verified labels are permuted.
    """

    learned: dict[str, float]
    verified: float = 0.0
    permuted: bool = False


def _learned(digits: float, shapes: float) -> dict[str, float]:
    return {"digits": digits, "patterns": shapes}


ARMS = {
    "permuted": Arm(_learned(0.3, 0.3), permuted=True),
    "clean": Arm(_learned(0.0, 0.0)),
    "harm": Arm(_learned(0.0, 0.0), verified=0.3),
    "gain 2": Arm(_learned(0.05, 0.05)),
    "gain 5": Arm(_learned(0.12, 0.12)),
    "gain 10": Arm(_learned(0.2, 0.2)),
}


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes
    ----------
    data, arm, inputs
        Keys of `SIZES`, `ARMS` and `INPUTS`.
    size
        Verified samples.
    seed
        Of everything that is drawn.
    epochs
        Of the network's training.
    """

    data: str
    arm: str
    inputs: str
    size: int
    seed: int
    epochs: int = EPOCHS


def samples_of(data: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return all inputs and true labels of a seed in random order: training, then to verify, then unseen."""
    if data == "patterns":
        return patterns(CLASSES, TRAINING + 5000, seed)
    from sklearn.datasets import load_digits

    found = load_digits()
    labels = torch.from_numpy(found.target).long()
    order = stratified_order(labels, seed)
    return torch.from_numpy(found.data).float()[order] / 16, labels[order]


def case(job: Job) -> tuple[Case, Samples]:
    """Return the network of a run with its samples, and the unseen ones.

    Parameters
    ----------
    job
        The run.

    Returns
    -------
    case : Case
        The network and what there is to correct it with.
    unseen : Samples
        Those that measure the truth.
    """
    arm, (x, y), most = ARMS[job.arm], samples_of(job.data, job.seed), SIZES[job.data][-1]
    given = wrong_labels(y[:TRAINING], arm.learned[job.data], CLASSES, job.seed)

    def trained(labels: Tensor) -> Any:
        model = mlp((64, 256, 256, CLASSES), job.seed, norm=True)
        return train(model, x[:TRAINING], labels, epochs=job.epochs, rate=0.01, batch=50, seed=job.seed)

    inputs, labels = x[TRAINING : TRAINING + job.size], y[TRAINING : TRAINING + job.size]
    labels = wrong_labels(labels, arm.verified, CLASSES, job.seed + 1)
    if arm.permuted:
        labels = labels[torch.randperm(job.size, generator=torch.Generator().manual_seed(job.seed))]
    training = read_samples((x[:TRAINING], given))
    verified, unseen = read_samples((inputs, labels)), read_samples((x[TRAINING + most :], y[TRAINING + most :]))
    return Case(trained(given), verified, training, y[:TRAINING], (), trained, CLASSES, job.seed), unseen


def run(job: Job) -> Record:
    """Correct one network, and measure on unseen samples what that gains.

    Parameters
    ----------
    job
        The run.

    Returns
    -------
    dict
        Whether and what was changed, accuracies in percent, gains in points, seconds.
    """
    problem, unseen = case(job)
    everything = range(len(unseen))
    before = percent_right(predicted(problem.model, unseen, everything), unseen)
    start = time.perf_counter()
    correction = correct(problem.model, problem.verified, **INPUTS[job.inputs].arguments(problem), check_labels=False)
    seconds = time.perf_counter() - start
    after = percent_right(predicted(correction.model, unseen, everything), unseen)
    return {
        "changed": correction.changed,
        "kept": correction.kept,
        "before": before,
        "after": after,
        "gain": after - before,
        "forced": forced(problem, unseen) - before,
        "seconds": round(seconds, 2),
    }


def forced(problem: Case, unseen: Samples) -> float:
    """Return the accuracy on unseen samples after a fine-tuning that nothing decides on, in percent."""
    model = copy_model(problem.model)
    with borrowed(model), torch.no_grad():
        whole, _ = contexts(problem, model)
        epochs = float(max(1, round(FORCED_SEEN / len(problem.verified))))
        tuned = FineTuning(problem, whole).fit((FORCED_RATE, epochs))
        return percent_right(predictor(model, tuned)(unseen, range(len(unseen))), unseen)


def summed_up(records: Sequence[Record]) -> list[Record]:
    """Return one row per data, arm, inputs and size: how often the rule changed something, and what that gained.

    Parameters
    ----------
    records
        Of single runs.

    Returns
    -------
    list of dict
        Changed in percent with Wilson's 95% interval; gains are means in points.
    """
    rows = []
    order = {name: i for i, name in enumerate([*SIZES, *ARMS, *INPUTS])}
    keys = {(record["data"], record["arm"], record["inputs"], record["size"]) for record in records}
    for key in sorted(keys, key=lambda key: (*(order[name] for name in key[:3]), key[3])):
        own = [r for r in records if (r["data"], r["arm"], r["inputs"], r["size"]) == key]
        changed = [r for r in own if r["changed"]]
        low, high = wilson(len(changed), len(own))
        rows.append(
            {
                **dict(zip(("data", "arm", "inputs", "verified"), key, strict=True)),
                "runs": len(own),
                "changed": len(changed),
                "changed %": f"{100 * len(changed) / len(own):.0f} ({low:.0f} to {high:.0f})",
                "gain": fmean(r["gain"] for r in own),
                "gain where changed": fmean(r["gain"] for r in changed) if changed else "",
                "lost over 0.5": sum(r["gain"] < -0.5 for r in own),
                "gain without a choice": fmean(r["forced"] for r in own),
                "seconds": fmean(r["seconds"] for r in own),
            }
        )
    return rows


def jobs(arguments: argparse.Namespace) -> list[Job]:
    """Return the runs that were asked for, all arms of a seed before the next seed."""
    seeds = range(FIRST, FIRST + arguments.seeds)
    products = itertools.product(seeds, arguments.data, arguments.arms, arguments.inputs)
    return [
        Job(data, arm, inputs, size, seed, arguments.epochs)
        for seed, data, arm, inputs in products
        for size in SIZES[data]
        if not arguments.sizes or size in arguments.sizes
    ]


def main(words: Sequence[str] | None = None) -> int:
    """Measure what is missing, and write the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.choice_simulation", description=__doc__.split("\n")[0])
    parser.add_argument("--data", nargs="+", choices=list(SIZES), default=["digits"])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--inputs", nargs="+", choices=list(INPUTS), default=["verified", "unlabelled"])
    parser.add_argument("--sizes", nargs="+", type=int, help="only these numbers of verified samples")
    parser.add_argument("--seeds", type=int, default=SEEDS, help=f"how many, from {FIRST} on")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--quick", action="store_true", help="one seed, 50 samples, hardly trained; give --out")
    arguments = parser.parse_args(words)
    arguments.epochs = EPOCHS
    if arguments.quick:
        arguments.seeds, arguments.sizes, arguments.workers, arguments.epochs = 1, [50], 1, 2
    return concluded(arguments.out, jobs(arguments), run, arguments.workers, summed_up)[1]


if __name__ == "__main__":
    sys.exit(main())

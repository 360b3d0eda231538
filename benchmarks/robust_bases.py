"""What a correction adds to networks whose training was robust to wrong labels already.

Run from the repository's root: ``python -m benchmarks.robust_bases digits cifar10``. One line per run goes into
benchmarks/results/robust_bases.jsonl, and what is there is not run again; then the table is written to
robust_bases.json and into docs/robust-bases.md. ``--quick`` trains for an epoch.

``digits``: the MLP of `benchmarks.tasks`, 30% symmetric noise, 200 verified samples, seeds 35 to 39. ``cifar10``: the
small ResNet on 5,000 images, 30% symmetric noise, 1,000 verified images, seeds 1 to 3, scored on the test images; it
needs the folder of shared files. All trainings are those of the demo, Adam on a one-cycle schedule for as many epochs
as the plain one, at usual settings, tuned on nothing:

``plain``            cross-entropy.
``mixup``            Zhang et al., ICLR 2018 (arXiv 1710.09412), α = 1.
``label smoothing``  Lukasik et al., ICML 2020 (arXiv 2003.02819), 0.1.
``SAM``              Foret et al., ICLR 2021 (arXiv 2010.01412), ρ = 0.1, as for noisy labels there; from
                     pytorch_optimizer, with BatchNorm's statistics of the first of both passes.
``LogitClip``        Wei et al., ICML 2023 (arXiv 2212.04055): the logits in the loss are cut to a norm of 2.
``MentorMix``        Jiang et al., ICML 2020 (arXiv 1911.09781): the mentor takes samples whose loss is below a moving
                     average of the batch's 70th percentile; each sample is mixed with one drawn by weight, and the
                     larger share goes to the one that the mentor trusts, α = 2. The first fifth of the training is
                     plain. There is no second weighting.

Each is then corrected with the paper's method alone (``verifix``) and with all stages (``auto``), and the latter also
with the training inputs (``--unlabelled``).
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.cells import percent_right
from benchmarks.methods.base import Tool, by_verifix
from benchmarks.records import Record, concluded, table
from benchmarks.tasks import DIGITS, RESNET, Learner, case
from verifix.model.answers import predicted

OUT, PAGE = Path("benchmarks/results/robust_bases.jsonl"), Path("docs/robust-bases.md")
BEGIN, END = "<!-- begin of the table; python -m benchmarks.robust_bases -->", "<!-- end of the table -->"
NOISE, RATE = "symmetric", 0.3

MIXUP, SMOOTHING, RADIUS, NORM = 1.0, 0.1, 0.1, 2.0
TRUSTED, MENTORMIX, PLAIN, MEMORY = 0.7, 2.0, 0.2, 0.95
"""Percentile of the loss, Beta's α, share of plain epochs, and how much of the moving average stays."""


@dataclass(frozen=True)
class Task:
    """A row of `TASKS`: architecture of `benchmarks.tasks`, numbers of verified samples, seeds."""

    architecture: str
    sizes: tuple[int, ...]
    seeds: tuple[int, ...]


TASKS = {"digits": Task("mlp", (200,), (35, 36, 37, 38, 39)), "cifar10": Task("resnet", (1000,), (1, 2, 3))}
LEARNERS: dict[str, Learner] = {"digits": DIGITS, "cifar10": RESNET}

TOOLS = {"verifix": Tool("verifix"), "auto": Tool("auto"), "auto_unlabelled": Tool("auto", unlabelled=True)}


class Training:
    """A training of a network, which a base changes where it differs from the plain one.

    Parameters
    ----------
    model
        The network.
    rate
        Peak learning rate.
    steps
        How many.
    generator
        Where chance comes from.
    """

    def __init__(self, model: nn.Module, rate: float, steps: int, generator: torch.Generator) -> None:
        self.model, self.steps, self.generator, self.done = model, steps, generator, 0
        self.optimizer = self.made(rate)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.scheduled(), rate, total_steps=steps)

    def made(self, rate: float) -> torch.optim.Optimizer:
        """Return the optimizer."""
        return torch.optim.Adam(self.model.parameters(), lr=rate)

    def scheduled(self) -> torch.optim.Optimizer:
        """Return the optimizer whose rate rises and falls."""
        return self.optimizer

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of a batch."""
        return F.cross_entropy(self.model(x), y)

    def step(self, x: Tensor, y: Tensor) -> None:
        """Take a step."""
        self.optimizer.zero_grad()
        self.loss(x, y).backward()
        self.optimizer.step()
        self.schedule.step()
        self.done += 1

    def shares(self, alpha: float, x: Tensor) -> Tensor:
        """Draw from Beta(α, α), once per sample: ``[n]``."""
        concentration = torch.full((2, len(x)), alpha)
        gamma = torch._standard_gamma(concentration, generator=self.generator)  # the public one takes no generator
        return gamma[0] / gamma.sum(dim=0)


class Mixup(Training):
    """Inputs and labels of two samples mixed."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of mixed samples."""
        other = torch.randperm(len(x), generator=self.generator)
        return mixed_loss(self.model, (x, y), (x[other], y[other]), self.shares(MIXUP, x))


class LabelSmoothing(Training):
    """A part of each label spread over all classes."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of smoothed labels."""
        return F.cross_entropy(self.model(x), y, label_smoothing=SMOOTHING)


class LogitClip(Training):
    """Logits cut to a norm, in the loss alone."""

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of logits that are cut."""
        return F.cross_entropy(clipped(self.model(x), NORM), y)


class Sharpness(Training):
    """The gradient where the loss is highest nearby."""

    def made(self, rate: float) -> torch.optim.Optimizer:
        """Return SAM around Adam."""
        from pytorch_optimizer import SAM

        found: torch.optim.Optimizer = SAM(self.model.parameters(), torch.optim.Adam, rho=RADIUS, lr=rate)
        return found

    def scheduled(self) -> torch.optim.Optimizer:
        """Return Adam, whose groups are those of SAM."""
        inner: torch.optim.Optimizer = self.optimizer.base_optimizer  # type: ignore[attr-defined]
        return inner

    def step(self, x: Tensor, y: Tensor) -> None:
        """Take a step of two passes, of which BatchNorm's statistics see the first."""
        from pytorch_optimizer.optimizer.utils.model import disable_running_stats, enable_running_stats

        def again() -> Tensor:
            disable_running_stats(self.model)
            self.optimizer.zero_grad()
            loss = self.loss(x, y)
            loss.backward()
            return loss

        enable_running_stats(self.model)
        self.optimizer.zero_grad()
        self.loss(x, y).backward()
        self.optimizer.step(again)  # type: ignore[arg-type]
        enable_running_stats(self.model)
        self.schedule.step()
        self.done += 1


class MentorMix(Training):
    """Mixup that a mentor weights."""

    level: float | None = None

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the mean loss of samples mixed by trust, once the plain part is over."""
        with torch.no_grad():
            own = F.cross_entropy(self.model(x), y, reduction="none")
        level = float(own.quantile(TRUSTED))
        self.level = level if self.level is None else MEMORY * self.level + (1 - MEMORY) * level
        if self.done < PLAIN * self.steps:
            return super().loss(x, y)
        trusted = (own <= self.level).to(x.dtype)
        likely = torch.softmax(trusted, dim=0)
        other = likely.multinomial(len(x), replacement=True, generator=self.generator)
        share = self.shares(MENTORMIX, x)
        larger = torch.maximum(share, 1 - share)
        share = torch.where(trusted > 0, larger, 1 - larger)
        return mixed_loss(self.model, (x, y), (x[other], y[other]), share)


BASES: dict[str, type[Training]] = {
    "plain": Training,
    "mixup": Mixup,
    "label smoothing": LabelSmoothing,
    "SAM": Sharpness,
    "LogitClip": LogitClip,
    "MentorMix": MentorMix,
}


def mixed_loss(model: nn.Module, one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], share: Tensor) -> Tensor:
    """Return the mean loss of samples that are mixed.

    Parameters
    ----------
    model
        The network.
    one, other
        Inputs ``[n, …]`` and labels ``[n]``.
    share
        Of `one`, ``[n]``.

    Returns
    -------
    Tensor
        A scalar.
    """
    wide = share.reshape(-1, *[1] * (one[0].ndim - 1))
    logits = model(wide * one[0] + (1 - wide) * other[0])
    losses = [F.cross_entropy(logits, labels, reduction="none") for labels in (one[1], other[1])]
    mean: Tensor = (share * losses[0] + (1 - share) * losses[1]).mean()
    return mean


def clipped(logits: Tensor, norm: float) -> Tensor:
    """Return logits ``[n, classes]`` whose norm is at most `norm`, in their direction."""
    length: Tensor = logits.norm(dim=1, keepdim=True)
    cut: Tensor = logits * (norm / length.clamp(min=norm))
    return cut


def trained(
    base: str, model: nn.Module, x: Tensor, y: Tensor, *, epochs: int, rate: float, batch: int, seed: int
) -> nn.Module:
    """Train a network by one of the bases; "plain" is `verifix.cli.demo.training.train` to the last bit.

    Parameters
    ----------
    base
        A key of `BASES`.
    model
        The untrained network.
    x, y
        Training samples.
    epochs, rate, batch, seed
        Passes, peak learning rate, batch size, seed of all that is drawn.

    Returns
    -------
    nn.Module
        The same network in eval mode.
    """
    order, count = torch.Generator().manual_seed(seed), len(y) // batch
    training = BASES[base](model, rate, epochs * count, torch.Generator().manual_seed(seed + 1))
    model.train()
    for index in _batches(len(y), batch, epochs, order):
        training.step(x[index], y[index])
    return model.eval()


def _batches(count: int, batch: int, epochs: int, generator: torch.Generator) -> Iterator[Tensor]:
    for _ in range(epochs):
        yield from torch.randperm(count, generator=generator).split(batch)[: count // batch]


@dataclass(frozen=True)
class Job:
    """One network.

    Attributes
    ----------
    task, base
        Keys of `TASKS` and `BASES`.
    verified
        Samples to correct from.
    seed
        Of samples, labels and weights.
    epochs
        Of the training; 0 for as many as the network of the task has.
    """

    task: str
    base: str
    verified: int
    seed: int
    epochs: int = 0


def run(job: Job, tools: Sequence[str], shared: Path, cache: Path | None) -> Record:
    """Train a network, correct it with each tool, and score.

    Parameters
    ----------
    job
        What.
    tools
        Keys of `TOOLS`.
    shared
        Folder with data.
    cache
        Folder for trained networks.

    Returns
    -------
    dict
        Percent of the given training labels that the network gives back; accuracies on unseen samples in percent
        before and after each tool; seconds.
    """
    architecture = TASKS[job.task].architecture
    where = (job.task, architecture, NOISE, RATE, job.verified, job.seed)
    problem, unseen = case(*where, shared, cache, learner_of(job))
    model, training = problem.model, problem.training
    found: Record = {
        "learned": percent_right(predicted(model, training, range(len(training))), training),
        "before": percent_right(predicted(model, unseen, range(len(unseen))), unseen),
    }
    found["tools"] = {}
    for name in tools:
        start = time.perf_counter()
        answer = by_verifix(TOOLS[name], problem)
        seconds = round(time.perf_counter() - start, 1)
        after = percent_right(answer.predict(unseen, range(len(unseen))), unseen)
        found["tools"][name] = {"after": after, "chosen": answer.chosen, "seconds": seconds}
    return found


def learner_of(job: Job) -> Learner:
    """Return how the network of a run is trained."""
    usual = LEARNERS[job.task]
    sources = (*usual.sources, trained, mixed_loss, clipped, Training, BASES[job.base])
    return replace(usual, train=partial(trained, job.base), epochs=job.epochs or usual.epochs, sources=sources)


def summed_up(records: Sequence[Record]) -> list[Record]:
    """Return one row per task, number of samples and base: means in percent over seeds, and what each tool adds."""
    rows = []
    for task, row in TASKS.items():
        for size, base in ((size, base) for size in row.sizes for base in BASES):
            own = [r for r in records if (r["task"], r["verified"], r["base"]) == (task, size, base)]
            if own:
                rows.append(
                    {"network": f"{task}, {row.architecture}", "verified": size, "trained with": base} | _mean(own)
                )
    return rows


def _mean(own: Sequence[Record]) -> Record:
    found: Record = {"seeds": len(own)}
    found |= {"gives back": fmean(r["learned"] for r in own), "before": fmean(r["before"] for r in own)}
    for name in TOOLS:
        after = [r["tools"][name]["after"] for r in own if name in r["tools"]]
        gains = [r["tools"][name]["after"] - r["before"] for r in own if name in r["tools"]]
        found[name] = f"{fmean(after):.1f} ({fmean(gains):+.1f})" if after else ""
    return found


def write_page(rows: Sequence[Record]) -> None:
    """Write the table into its page."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(rows)}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")


def main(words: Sequence[str] | None = None) -> int:
    """Measure what is missing, and write the table; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.robust_bases", description=__doc__.split("\n")[0])
    parser.add_argument("tasks", nargs="+", choices=list(TASKS), metavar="TASK", help=", ".join(TASKS))
    parser.add_argument("--bases", nargs="+", choices=list(BASES), default=list(BASES), metavar="BASE")
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=list(TOOLS), metavar="TOOL")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each; 1 uses all threads")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data")
    parser.add_argument("--cache", type=Path, help="folder for trained networks, to train each of them once")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch; give --out")
    arguments = parser.parse_args(words)
    if arguments.quick:
        arguments.workers = 1
    jobs = [
        Job(task, base, size, seed, int(arguments.quick))
        for task in arguments.tasks
        for seed in TASKS[task].seeds[: 1 if arguments.quick else None]
        for size in TASKS[task].sizes
        for base in arguments.bases
        if not arguments.seeds or seed in arguments.seeds
    ]
    one = partial(run, tools=arguments.tools, shared=arguments.shared, cache=arguments.cache)
    rows, code = concluded(arguments.out, jobs, one, arguments.workers, summed_up)
    if arguments.out == OUT:
        write_page(rows)
    return code


if __name__ == "__main__":
    sys.exit(main())

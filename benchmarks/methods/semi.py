"""What the methods share that learn from training inputs as well: a teacher, soft targets, and batches of both kinds.

A step sees `VERIFIED` verified samples and `OTHERS` training inputs, whose given labels are not used, and lowers the
mean cross-entropy of the verified ones plus that of the others. Trainings are in eval mode, as those of all methods
here (see `benchmarks.methods.steps`), so BatchNorm keeps its statistics.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.methods.base import HALF_A_DECADE, Case, Rival, nearby
from benchmarks.methods.scrub import log_probabilities
from benchmarks.methods.steps import Steps, adam
from verifix.losses import cross_entropy, probabilities
from verifix.model.samples import Samples
from verifix.model.weights import Update
from verifix.recipe.context import Context
from verifix.recipe.stages.training import Training, trainable

VERIFIED, OTHERS = 32, 64
"""Samples of each kind in a step."""

ROUND = 25
"""Steps of a round, the unit of a training's length: 2,400 samples seen."""

ROUNDS, LONGEST = (2, 8), 42
"""Lengths to begin with, and the longest: 100,800 samples seen, as many as the long fine-tuning sees."""

RATES = (3.2e-4, 3.2e-3)

TAUGHT = 6400
"""Verified samples that a teacher sees."""

T = TypeVar("T")


class SemiSupervised(Rival):
    """A method that trains on verified samples and on training inputs; its strength ends with the number of rounds.

    Parameters
    ----------
    case
        The network and what there is to correct it with.
    context
        The verified samples to fit on.
    pool
        All training inputs as one batch, if they have been read.

    Attributes
    ----------
    pool, verified
        All training inputs, and the verified samples of the context: inputs and labels.
    """

    def __init__(self, case: Case, context: Context, pool: Any = None) -> None:
        super().__init__(case, context)
        self.pool = everything(case.training) if pool is None else pool
        self.verified = inputs_at(context.run.samples, context.indices), context.labels
        self.release()

    @classmethod
    @contextmanager
    def open(cls, case: Case) -> Iterator[Callable[[Context], Rival]]:
        """Lend what puts the method to work, the training inputs read once.

        Yields
        ------
        callable
            Context → the method there.
        """
        yield partial(cls, case, pool=everything(case.training))

    def release(self) -> None:
        """Let go of the trainings and of the teachers."""
        self.trainings: dict[Hashable, Training] = {}
        self.teachers: dict[float, Update] = {}

    def obstacle(self) -> str:
        """Say if no parameter may be changed."""
        return "" if trainable(self.context) else "no parameter may be changed"

    def neighbours(self, best: tuple[float, ...]) -> list[tuple[float, ...]]:
        """Return rates half a decade away, and trainings a quarter and four times as long."""
        rate, *others, rounds = best
        rates = nearby(rate, HALF_A_DECADE, 1e-7, 1.0)
        return [(near, *others, rounds) for near in rates] + [
            (rate, *others, near) for near in nearby(rounds, 4, 1, self.longest(), whole=True)
        ]

    def longest(self) -> int:
        """Return the most rounds."""
        return LONGEST

    def fit(self, strength: tuple[float, ...]) -> Update:
        """Return the weights after so many rounds.

        Parameters
        ----------
        strength
            Learning rate, settings of the method, rounds.

        Returns
        -------
        Update
            New values of all parameters that may be trained.
        """
        *settings, rounds = strength
        key = tuple(settings)
        if key not in self.trainings:
            self.trainings[key] = self.training(*settings)
        return self.trainings[key].after(int(rounds))

    def training(self, *settings: float) -> Training:
        """Begin a training with some settings."""
        raise NotImplementedError

    def taught(self, rate: float) -> Update:
        """Return the network fine-tuned on the verified labels: the only teacher that knows any right label.

        Parameters
        ----------
        rate
            Learning rate of Adam.

        Returns
        -------
        Update
            New values of all parameters that may be trained; not to be written to.
        """
        if rate not in self.teachers:
            steps = Steps(self.context, adam(self.context, rate))
            draws = itertools.islice(self.drawn(steps.generator), -(-TAUGHT // VERIFIED))
            steps.over(draws, lambda logits, labels: cross_entropy(logits, labels.to(logits.device)).mean())
            self.teachers[rate] = dict(steps.weights)
        return self.teachers[rate]

    def drawn(self, generator: torch.Generator) -> Iterator[tuple[Any, Tensor]]:
        """Yield batches of verified samples without end: inputs and labels."""
        inputs, labels = self.verified
        for chosen in endless(len(labels), VERIFIED, generator):
            yield at(inputs, chosen), labels[chosen]

    def beside_verified(
        self, generator: torch.Generator, others: Iterator[tuple[Any, Tensor]]
    ) -> Iterator[tuple[Any, tuple[Tensor, Tensor]]]:
        """Yield batches that begin with verified samples: inputs, the verified labels, and the others' targets."""
        for (inputs, targets), (x, labels) in zip(others, self.drawn(generator), strict=False):
            yield joined([x, inputs]), (labels, targets)


def answers(context: Context, samples: Samples, indices: Sequence[int], update: Update) -> Tensor:
    """Return the probabilities ``[n, classes]`` that the network gives some samples, under an update."""
    other = replace(context, run=replace(context.run, samples=samples))
    return probabilities(other.predict(indices, update))


def inputs_at(samples: Samples, indices: Sequence[int]) -> Any:
    """Return the inputs of some samples as one batch."""
    return next(samples.batches(indices, len(indices))).inputs


def joined(batches: Sequence[Any]) -> Any:
    """Return several batches of inputs as one."""
    first = batches[0]
    if isinstance(first, Mapping):
        return {name: torch.cat([batch[name] for batch in batches]) for name in first}
    return torch.cat(list(batches))


def everything(samples: Samples) -> Any:
    """Return the inputs of all samples as one batch."""
    return inputs_at(samples, range(len(samples)))


def at(inputs: Any, index: Tensor) -> Any:
    """Return some of a batch of inputs."""
    return {name: x[index] for name, x in inputs.items()} if isinstance(inputs, Mapping) else inputs[index]


def endless(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Yield `size` of so many indices at a time, in an order that is drawn anew whenever all have been there."""
    left = torch.empty(0, dtype=torch.long)
    while True:
        while len(left) < size:
            left = torch.cat([left, torch.randperm(count, generator=generator)])
        yield left[:size]
        left = left[size:]


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return −Σ_k targets_k log p_k of each sample ``[n]``, for logits ``[n, outputs]``."""
    return -(targets.to(logits) * log_probabilities(logits)).sum(dim=1)


def both(logits: Tensor, known: tuple[Tensor, Tensor]) -> Tensor:
    """Return the mean loss of the verified samples that a batch begins with, plus that of the others."""
    labels, targets = known
    count = len(labels)
    verified = cross_entropy(logits[:count], labels.to(logits.device)).mean()
    return verified + soft_cross_entropy(logits[count:], targets).mean()


def one_round(batches: Iterator[T]) -> Iterator[T]:
    """Yield the batches of the next round out of batches without end."""
    return itertools.islice(batches, ROUND)

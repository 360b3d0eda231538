"""A student of the corrected model: trained on its answers for unlabelled inputs, the verified labels beside them.

The corrected model is right about more of the inputs than it was trained to give back: wrong labels that a network has
memorised stay in the weights that a correction from few samples leaves alone. Training on its answers for inputs that
are strongly changed (FixMatch, Sohn et al., arXiv 2001.07685), or where they cannot be changed, mixed (mixup, Zhang et
al., arXiv 1710.09412), replaces what was memorised. No label of these inputs is needed; where they have given labels,
these can count beside mixed inputs, through the probability of giving them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from verifix.losses import cross_entropy, probabilities
from verifix.model.gradients import precise
from verifix.model.labels import UNKNOWN
from verifix.model.unlabelled import Unlabelled
from verifix.model.weights import Update
from verifix.options import CorrectOptions
from verifix.recipe.candidates import Listed
from verifix.recipe.context import Context
from verifix.recipe.stages.base import Stage
from verifix.recipe.stages.finetune import MOST as LONGEST
from verifix.recipe.stages.finetune import RATE, labelled, lengths_of, rate_of
from verifix.recipe.stages.jitter import flipped_and_shifted, jitter_for, mixed, weak_and_strong
from verifix.recipe.stages.training import Batch, Pool, Schedule, Training, descend, trainable

MOST = 12_000
"""Unlabelled inputs that are used: more are drawn from at random."""

EVERY = 3
"""One step in so many is on verified samples."""

TRUST = 0.5
"""The exponent of the probability of a given label: below 1, because the model has seen that label in training, and
its answer and the label are far from independent."""

LIKELY = 0.9
"""How likely the likeliest class has to be, for an input to count."""

CHANGED = 2
"""With changes, networks see so many times the inputs of the longest fine-tuning."""

PRIOR = 1.0
"""Inputs with each given label that every class is taken to have, before any is seen."""


class Distill(Stage):
    """Adam on the model's own answers; its strength is (inputs seen, trust in given labels, changes of inputs).

    Without changes, targets are the answers at the start, for inputs that are mixed. With changes, they are the
    likeliest classes for inputs a little changed, as the training goes on, and the inputs are those strongly changed:
    FixMatch (Sohn et al., arXiv 2001.07685).

    Attributes
    ----------
    trainings
        Those that have begun, by trust and changes.
    """

    name = "distill"
    about = "A training on the corrected model's own answers for unlabelled inputs."
    numbers = ("seen", "trust", "changes")
    automatic = True
    trains = True
    unlabelled = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.trainings: dict[tuple[float, float], Training] = {}

    @classmethod
    def tried(cls, options: CorrectOptions) -> bool:
        """Tell whether there are unlabelled inputs."""
        return options.beside

    def obstacle(self) -> str:
        """Say if there is nothing to learn from, or no parameter may be changed."""
        if self.context.run.unlabelled is None:
            return "no unlabelled inputs were given"
        return "" if trainable(self.context) else "no parameter may be changed"

    @property
    def beside(self) -> Unlabelled:
        """The unlabelled inputs."""
        assert self.context.run.unlabelled is not None  # noqa: S101 - `obstacle` has been asked
        return self.context.run.unlabelled

    @cached_property
    def indices(self) -> list[int]:
        """Which of the unlabelled inputs are used: `MOST` of them at random, the same in all contexts."""
        generator = torch.Generator().manual_seed(self.context.run.seed)
        return sorted(torch.randperm(len(self.beside), generator=generator)[:MOST].tolist())

    @cached_property
    def lengths(self) -> list[int]:
        """Samples seen where a training may stop, ascending; by the end, every input has been seen at least once."""
        longest = max(lengths_of(self.context)[-1], len(self.indices) * EVERY // (EVERY - 1))
        return [longest // 2, longest]

    @cached_property
    def answers(self) -> Tensor:
        """What the model answers, ``[n, classes]``."""
        return probabilities(self.context.predict(self.indices, {}, self.beside.samples))

    def lengths_with(self, changes: float) -> list[int]:
        """Return the inputs seen where a training may stop: with changes, it is longer."""
        longest = max(self.lengths[-1], CHANGED * LONGEST)
        return [longest // 2, longest] if changes else self.lengths

    def candidates(self) -> Listed:
        """Return both lengths, with changes for small networks whose inputs can be changed; else without."""
        small = rate_of(self.context) == RATE
        soft = [(0.0, 0.0)] + [(TRUST, 0.0)] * (self.beside.given is not None)
        ways = [(0.0, 1.0)] if small and self._changeable() else soft
        strengths = tuple((float(seen), *way) for way in ways for seen in self.lengths_with(way[1]))
        return Listed(strengths, kind=(self.numbers.index("trust"),))

    def _changeable(self) -> bool:
        """Tell whether there are changes, and verified and other inputs fit into one batch."""
        run = self.context.run
        own, other = (
            run.samples.alone(self.context.indices[0]).inputs,
            self.beside.samples.alone(self.indices[0]).inputs,
        )
        return weak_and_strong(self.context, own) is not None and own.shape == other.shape

    def fit(self, strength: tuple[float, float, float]) -> Update:
        """Return the student's weights.

        Parameters
        ----------
        strength
            Inputs seen, the exponent of the probability of given labels, and 1 for changes of inputs or 0.

        Returns
        -------
        Update
            New values of all trained parameters.
        """
        seen, *way = strength
        trust, changes = way
        if (trust, changes) not in self.trainings:
            self.trainings[trust, changes] = Training(self._consistent() if changes else self._trained(trust))
        return self.trainings[trust, changes].after(1 + self.lengths_with(changes).index(round(seen)))

    def release(self) -> None:
        """Let go of the trainings, whose optimizers hold as much as the model thrice."""
        self.trainings = {}

    def _trained(self, trust: float) -> Iterator[Callable[[], Update]]:
        context, run = self.context, self.context.run
        given = None if self.beside.given is None else self.beside.given[self.indices]
        targets = self.answers if given is None or not trust else with_given(self.answers, given, trust)
        jitter, turn = _jitter(context), itertools.count()
        verified, verified_batch = labelled(context, jitter=jitter)
        others = Pool(self.beside.samples, self.indices, verified.size, run.seed)

        def batch() -> Batch:
            if next(turn) % EVERY == EVERY - 1:
                return verified_batch()
            inputs, places = others.draw()
            soft = targets[places]
            if isinstance(inputs, Tensor) and inputs.is_floating_point() and not inputs.is_nested:
                if jitter and jitter_for(context, inputs) is flipped_and_shifted:
                    inputs = flipped_and_shifted(inputs, others.generator)
                inputs, soft = mixed(inputs, soft, others.generator)
            return inputs, partial(_soft_loss, targets=soft.to(run.device)), len(places)

        return self._descended(batch, verified.size, changes=0.0)

    def _consistent(self) -> Iterator[Callable[[], Update]]:
        context, run = self.context, self.context.run
        verified, verified_batch = labelled(context, jitter=True)
        others = Pool(self.beside.samples, self.indices, verified.size, run.seed)

        def batch() -> Batch:
            inputs, loss, count = verified_batch()
            x, places = others.draw()
            changes = weak_and_strong(context, x)
            assert changes is not None  # noqa: S101 - it was asked whether there are any
            parts = [inputs, *(change(x, others.generator) for change in changes)]
            return torch.cat(parts), partial(_both, verified=loss, count=count), count + 2 * len(places)

        return self._descended(batch, others.size, changes=1.0)

    def _descended(self, batch: Callable[[], Batch], size: int, *, changes: float) -> Iterator[Callable[[], Update]]:
        steps = [max(1, round(seen / size)) for seen in self.lengths_with(changes)]
        return descend(self.context, Schedule(rate_of(self.context), steps[-1], steps, loose=True), batch)


def _jitter(context: Context) -> bool:
    """Tell whether folds found that labels survive jitter: the fine-tuning before has it, or none was there to ask."""
    strength = context.strengths.get("finetune")
    return not isinstance(strength, tuple) or bool(strength[2])


def with_given(answers: Tensor, given: Tensor, trust: float) -> Tensor:
    """Return p(y | x) · T(given | y)^trust, normalised, where T is estimated from the answers themselves.

    Parameters
    ----------
    answers
        p(y | x), ``[n, classes]``.
    given
        int64 ``[n]``; `UNKNOWN` where there is none, which leaves the answer as it is.
    trust
        The exponent.

    Returns
    -------
    Tensor
        ``[n, classes]``.
    """
    known, classes = given != UNKNOWN, answers.shape[1]
    counts = answers[known].mT @ F.one_hot(given[known], classes).to(answers.dtype) + PRIOR  # [true, given]
    giving = (counts / counts.sum(dim=1, keepdim=True)) ** trust
    weighed = answers.clone()
    weighed[known] *= giving.mT[given[known]]
    return weighed / weighed.sum(dim=1, keepdim=True)


def _both(logits: Tensor, verified: Callable[[Tensor], Tensor], count: int) -> Tensor:
    """Return the loss of a batch: of verified samples, and of others weakly changed, and again, strongly changed."""
    return verified(logits[:count]) + consistency(*logits[count:].chunk(2))


def consistency(weak: Tensor, strong: Tensor) -> Tensor:
    """Return how far answers for strongly changed inputs are from sure ones for the same inputs, weakly changed.

    Parameters
    ----------
    weak, strong
        Logits ``[n, outputs]``; no gradient goes through the former.

    Returns
    -------
    Tensor
        A scalar, the mean over all inputs: the cross-entropy with the likeliest class, and 0 where that is less likely
        than `LIKELY` (equation 4 of arXiv 2001.07685).
    """
    share, guess = probabilities(weak.detach()).max(dim=1)
    return torch.where(share >= LIKELY, cross_entropy(precise(strong), guess), 0.0).mean()


def _soft_loss(logits: Tensor, targets: Tensor) -> Tensor:
    logits = precise(logits)
    if logits.shape[1] == 1:
        return F.binary_cross_entropy_with_logits(logits[:, 0], targets[:, 1].to(logits.dtype))
    return F.cross_entropy(logits, targets.to(logits.dtype))

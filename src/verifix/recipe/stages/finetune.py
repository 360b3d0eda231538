"""A training on the verified labels, pulled towards the weights as the earlier stages left them (L2-SP)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial

from torch import Tensor

from verifix.losses import cross_entropy
from verifix.model.gradients import precise
from verifix.model.weights import Update
from verifix.recipe.candidates import Listed
from verifix.recipe.context import Context
from verifix.recipe.stages.base import Stage
from verifix.recipe.stages.jitter import jitter_for
from verifix.recipe.stages.training import Batch, Pool, Schedule, Training, batch_size, descend, dropouts, trainable

RATE, CAREFUL = 1e-2, 1e-3
"""Learning rate of Adam, relative to the size of each tensor: a weight of one network is a tenth of another's. That of
large networks, whose training `WORK` bounds, is lower: they are deeper, and what many layers change adds up."""

MOST, FEWEST, WORK, EPOCHS = 12_800, 2_400, 7.5e11, 2
"""Samples seen in the longest training: so many that they take `WORK` multiply-adds forward, between these bounds; and
at least `EPOCHS` times each sample."""

SHARES = (1 / 8, 3 / 8, 1.0)
"""Parts of the longest training after which it may stop."""


class FineTune(Stage):
    """Adam on the mean cross-entropy plus μ / 2 · ‖w − w₀‖²; its strength is (rate, samples seen, jitter).

    Jitter 1 changes inputs at random in ways that labels survive (see `verifix.recipe.stages.jitter`), and turns the
    model's own dropout on; 0 does neither.

    Attributes
    ----------
    trainings
        Those that have begun, by rate and jitter.
    """

    name = "finetune"
    about = "A training of all weights, pulled towards their previous values."
    numbers = ("rate", "seen", "jitter")
    trains = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.trainings: dict[tuple[float, float], Training] = {}

    def obstacle(self) -> str:
        """Say if no parameter may be changed."""
        return "" if trainable(self.context) else "no parameter may be changed"

    @cached_property
    def lengths(self) -> list[int]:
        """Samples seen at the points where a training may stop, ascending."""
        return lengths_of(self.context)

    def candidates(self) -> Listed:
        """Return each point where a training may stop, with and without jitter where there is one."""
        first = self.context.run.samples.alone(self.context.indices[0]).inputs
        can = jitter_for(self.context, first) is not None or bool(dropouts(self.context.run.model))
        rate = rate_of(self.context)
        return Listed(
            tuple((rate, float(seen), jitter) for jitter in ((1.0, 0.0) if can else (0.0,)) for seen in self.lengths),
            kind=(self.numbers.index("jitter"),),
        )

    def fit(self, strength: tuple[float, float, float]) -> Update:
        """Return the weights after training.

        Parameters
        ----------
        strength
            Learning rate, samples seen, and 1 for jitter or 0.

        Returns
        -------
        Update
            New values of all trained parameters.
        """
        rate, seen, jitter = strength
        if (rate, jitter) not in self.trainings:
            self.trainings[rate, jitter] = Training(self._trained(rate, jitter))
        return self.trainings[rate, jitter].after(1 + self.lengths.index(round(seen)))

    def _trained(self, rate: float, jitter: float) -> Iterator[Callable[[], Update]]:
        pool, batch = labelled(self.context, jitter=bool(jitter))
        steps = [max(1, round(seen / pool.size)) for seen in self.lengths]
        return descend(self.context, Schedule(rate, steps[-1], steps, loose=bool(jitter)), batch)

    def release(self) -> None:
        """Let go of the trainings, whose optimizers hold as much as the model thrice."""
        self.trainings = {}


def labelled(context: Context, *, jitter: bool) -> tuple[Pool, Callable[[], Batch]]:
    """Return the verified samples of a context to train on, and what draws the next batch of them."""
    run, count = context.run, len(context.indices)
    pool = Pool(run.samples, context.indices, batch_size(count, run.work), run.seed)
    labels = context.labels

    def batch() -> Batch:
        inputs, places = pool.draw()
        change = jitter_for(context, inputs) if jitter else None
        if change is not None:
            inputs = change(inputs, pool.generator)
        own = labels[places].to(context.run.device)
        return inputs, partial(_loss, labels=own), len(places)

    return pool, batch


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(precise(logits), labels).mean()


def lengths_of(context: Context) -> list[int]:
    """Return how many samples trainings see until each point where they may stop, ascending."""
    least = max(FEWEST, EPOCHS * len(context.run.samples))
    longest = min(max(WORK / max(context.run.work, 1), least), max(MOST, least))
    return [round(share * longest) for share in SHARES]


def rate_of(context: Context) -> float:
    """Return the rate of a training: lower for networks too large for the longest one."""
    return CAREFUL if context.run.work * MOST > WORK else RATE

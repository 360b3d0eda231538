"""Fine-tuning as practitioners do it: Adam on the cross-entropy of the verified samples, over all parameters.

BatchNorm stays in eval mode, as a few hundred samples say little about its statistics. There is no pull and no weight
decay: the training ends early instead. The optimiser is that of Kingma and Ba (arXiv 1412.6980), its rate constant.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from benchmarks.methods.base import HALF_A_DECADE, Case, Rival, nearby
from benchmarks.methods.steps import Steps, adam
from verifix.errors import DataError
from verifix.losses import cross_entropy
from verifix.model.weights import Update
from verifix.recipe.candidates import Listed
from verifix.recipe.context import Context
from verifix.recipe.stages.training import Training, trainable

RATES = (1e-5, 1e-4, 1e-3, 1e-2)
SEEN = 400
"""Samples seen in the shortest training to begin with; the long one is four times as long."""

MOST = 25_600
"""Samples seen in the longest training, 128 epochs of 200: longer is better still, at four times the cost each time."""

BATCH = 32


class FineTuning(Rival):
    """Adam on all parameters; its settings are (rate, epochs)."""

    name = "finetuning"
    most = MOST

    def __init__(self, case: Case, context: Context) -> None:
        super().__init__(case, context)
        self.trainings: dict[float, Training] = {}

    def release(self) -> None:
        """Let go of the trainings."""
        self.trainings = {}

    def obstacle(self) -> str:
        """Say if no parameter may be changed."""
        return "" if trainable(self.context) else "no parameter may be changed"

    def candidates(self) -> Listed:
        """Return each rate with a short and a long training."""
        shortest = max(1, round(SEEN / len(self.context.indices)))
        return Listed(tuple((rate, float(count)) for rate, count in itertools.product(RATES, (shortest, 4 * shortest))))

    def neighbours(self, best: tuple[float, float]) -> list[tuple[float, float]]:
        """Return the rates half a decade away, and trainings a quarter and four times as long."""
        rate, epochs = best
        lengths = nearby(epochs, 4, 1, max(4, self.most // len(self.context.indices)), whole=True)
        return [(near, epochs) for near in nearby(rate, HALF_A_DECADE, 1e-7, 1.0)] + [(rate, near) for near in lengths]

    def fit(self, strength: tuple[float, float]) -> Update:
        """Return the weights after so many epochs.

        Parameters
        ----------
        strength
            Learning rate and epochs.

        Returns
        -------
        Update
            New values of all parameters.
        """
        rate, epochs = strength
        if rate not in self.trainings:
            self.trainings[rate] = Training(_epochs(self.context, rate))
        return self.trainings[rate].after(int(epochs))


class LongFineTuning(FineTuning):
    """The same, and it may go on four times as long."""

    name = "finetuning_long"
    most = 4 * MOST


def _epochs(context: Context, rate: float) -> Iterator[Callable[[], Update]]:
    """Train, and yield after every epoch what returns the weights then."""
    steps = Steps(context, adam(context, rate), BATCH)

    def loss(logits: Tensor, indices: Sequence[int]) -> Tensor:
        return cross_entropy(logits, context.run.samples.labels[list(indices)].to(logits.device)).mean()

    while True:
        steps.epoch(context.run.samples, context.indices, loss)
        broken = next((name for name, weight in steps.weights.items() if not torch.isfinite(weight).all()), None)
        if broken is not None:
            raise DataError(f"fine-tuning at rate {rate} made {broken!r} NaN or Inf; try lower rates only")
        yield lambda: {name: weight.clone() for name, weight in steps.weights.items()}

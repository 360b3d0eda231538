"""Fine-tuning as practitioners do it: Adam on the cross-entropy of the verified samples, over all parameters.

BatchNorm stays in eval mode, as a few hundred samples say little about its statistics. There is no pull and no weight
decay: the training ends early instead. The optimiser is that of Kingma and Ba (arXiv 1412.6980); the batches are as
large as in the tool's own training.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch

from benchmarks.methods.base import Rival
from verifix.gradients import gradients
from verifix.scoring import Update
from verifix.stages import Context
from verifix.stages.finetune import Training, batch_size, trainable
from verifix.strength import Listed

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
EPOCHS = (2, 5, 20)
MOST = 6000
"""Samples seen in a training, at most; with many samples the long trainings are left out."""


class FineTuning(Rival):
    """Adam on all parameters; its settings are (rate, epochs)."""

    name = "finetuning"

    def obstacle(self, context: Context) -> str:
        """Say if no parameter may be changed."""
        return "" if trainable(context) else "no parameter may be changed"

    def candidates(self, context: Context) -> Listed:
        """Return each rate with every number of epochs that is not too long, and the two shortest in any case."""
        lengths = [epochs for epochs in EPOCHS if epochs in EPOCHS[:2] or epochs * len(context.indices) <= MOST]
        return Listed(tuple((rate, float(epochs)) for rate, epochs in itertools.product(RATES, lengths)))

    def fit(self, context: Context, strength: tuple[float, float]) -> Update:
        """Return the weights after so many epochs.

        Parameters
        ----------
        context
            Where to take samples and weights from.
        strength
            Learning rate and epochs, one of `EPOCHS`.

        Returns
        -------
        Update
            New values of all parameters.
        """
        rate, epochs = strength
        training: Training = context.remember(f"training at {rate}", lambda: Training(_epochs(context, rate)))
        return training.after(int(epochs))


def _epochs(context: Context, rate: float) -> Iterator[Callable[[], Update]]:
    """Train, and yield after every epoch what returns the weights then."""
    names = trainable(context)
    generator = torch.Generator().manual_seed(context.seed)
    weights = {name: context.parameter(name).detach().clone() for name in names}
    optimizer = torch.optim.Adam(weights.values(), lr=rate)
    while True:
        with context.corrected(weights) as model:
            live = dict(model.named_parameters())
            for batch in _batches(context.indices, generator):
                slopes = gradients(
                    model, context.samples, batch, names, batch_size=context.batch_size, device=context.device
                )
                for name, weight in weights.items():
                    weight.grad = slopes[name]
                optimizer.step()
                for name, weight in weights.items():
                    live[name].data.copy_(weight)
        yield lambda: {name: weight.clone() for name, weight in weights.items()}


def _batches(indices: Sequence[int], generator: torch.Generator) -> Iterator[list[int]]:
    """Yield all indices once, in an order of chance."""
    order = [indices[i] for i in torch.randperm(len(indices), generator=generator).tolist()]
    size = batch_size(len(order))
    for start in range(0, len(order), size):
        yield order[start : start + size]

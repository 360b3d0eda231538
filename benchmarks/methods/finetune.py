"""Fine-tuning as practitioners do it: Adam on the cross-entropy of the verified samples, over all parameters.

BatchNorm stays in eval mode, as a few hundred samples say little about its statistics. There is no pull and no weight
decay: the training ends early instead. The optimiser is that of Kingma and Ba (arXiv 1412.6980); the batches are as
large as in the tool's own training.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch

from benchmarks.methods.base import Rival
from verifix.gradients import gradients
from verifix.scoring import Update
from verifix.stages import Context
from verifix.stages.finetune import batch_size, trainable
from verifix.strength import Listed

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
EPOCHS = (2, 5, 20)


class FineTuning(Rival):
    """Adam on all parameters; its settings are (rate, epochs)."""

    name = "finetuning"

    def obstacle(self, context: Context) -> str:
        """Say if no parameter may be changed."""
        return "" if trainable(context) else "no parameter may be changed"

    def candidates(self, context: Context) -> Listed:  # noqa: ARG002 - the same for every network
        """Return each rate with every number of epochs."""
        return Listed(tuple((rate, float(epochs)) for rate, epochs in itertools.product(RATES, EPOCHS)))

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
        return context.remember(f"training at {rate}", lambda: _trained(context, rate))[int(epochs)]


def _trained(context: Context, rate: float) -> Mapping[int, Update]:
    """Train once, and return the weights after each number of epochs that may be asked for."""
    names = trainable(context)
    generator = torch.Generator().manual_seed(context.seed)
    kept: dict[int, Update] = {}
    with context.corrected({name: context.parameter(name) for name in names}) as model:
        parameters = dict(model.named_parameters())
        live = {name: parameters[name] for name in names}
        optimizer = torch.optim.Adam(live.values(), lr=rate)
        for epoch in range(1, max(EPOCHS) + 1):
            for batch in _batches(context.indices, generator):
                slopes = gradients(
                    model, context.samples, batch, names, batch_size=context.batch_size, device=context.device
                )
                for name, parameter in live.items():
                    parameter.grad = slopes[name]
                optimizer.step()
            if epoch in EPOCHS:
                kept[epoch] = {name: parameter.detach().clone() for name, parameter in live.items()}
        optimizer.zero_grad()
    return kept


def _batches(indices: Sequence[int], generator: torch.Generator) -> Iterator[list[int]]:
    """Yield all indices once, in an order of chance."""
    order = [indices[i] for i in torch.randperm(len(indices), generator=generator).tolist()]
    size = batch_size(len(order))
    for start in range(0, len(order), size):
        yield order[start : start + size]

"""Short trainings by gradient steps, one epoch after the other, for the methods that are one.

Steps are those of SGD with momentum, in eval mode. Where a method raises a loss that has no upper bound, weights may
run off; so long gradients are cut to `LONGEST`, and an epoch that leads to logits above `LARGEST` counts as if it had
not been, and ends the training.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from verifix.borrow import run_model, to_device
from verifix.gradients import differentiable
from verifix.samples import Samples
from verifix.scoring import Update, logits_in
from verifix.stages import Context
from verifix.stages.finetune import batch_size, trainable

MOMENTUM = 0.9

LONGEST = 10.0
"""The longest gradient, over all parameters, that a step follows; longer ones are cut to it."""

LARGEST = 1e6
"""Logits that no trained network has: from there it is not far to numbers that are not finite."""

Loss = Callable[[Tensor, Sequence[int]], Tensor]
"""(logits ``[n, classes]``, which samples they are of) → what a step lowers, a scalar."""


class Steps:
    """Weights of a context's model that steps are taken on; the model itself stays as it is.

    Parameters
    ----------
    context
        Where to take the weights from.
    rate
        Learning rate.
    """

    def __init__(self, context: Context, rate: float) -> None:
        self.context = context
        self.weights = {name: context.parameter(name).detach().clone() for name in trainable(context)}
        self.optimizer = torch.optim.SGD(list(self.weights.values()), lr=rate, momentum=MOMENTUM)
        self.generator = torch.Generator().manual_seed(context.seed)

    def epoch(self, samples: Samples, indices: Sequence[int], loss: Loss) -> None:
        """Go over some samples once, in random order.

        Parameters
        ----------
        samples, indices
            The samples.
        loss
            What each step lowers.
        """
        order = [indices[i] for i in torch.randperm(len(indices), generator=self.generator).tolist()]
        device = self.context.device
        with self.context.corrected(self.weights) as model:
            parameters = dict(model.named_parameters())
            live = {name: parameters[name] for name in self.weights}
            with differentiable(parameters, live):
                for batch in samples.batches(order, batch_size(len(order))):
                    output = run_model(model, to_device(batch.inputs, device), samples.forward)
                    lowered = loss(logits_in(output, len(batch.labels)), batch.indices)
                    slopes = torch.autograd.grad(lowered, list(live.values()), allow_unused=True)
                    self._step(slopes)
                    for name, weight in self.weights.items():
                        live[name].data.copy_(weight)

    def _step(self, slopes: Sequence[Tensor | None]) -> None:
        """Take one step along gradients, those of all weights cut to `LONGEST` together."""
        length = torch.nn.utils.get_total_norm([slope for slope in slopes if slope is not None])
        cut = (LONGEST / (length + 1e-6)).clamp(max=1.0)
        for weight, slope in zip(self.weights.values(), slopes, strict=True):
            weight.grad = None if slope is None else slope * cut  # not in place: two may be one tensor
        self.optimizer.step()

    def sane(self) -> bool:
        """Tell whether what the network makes of the context's first samples still looks like logits."""
        samples, indices = self.context.samples, self.context.indices
        with self.context.corrected(self.weights) as model:
            batch = next(samples.batches(indices, batch_size(len(indices))))
            output = run_model(model, to_device(batch.inputs, self.context.device), samples.forward)
            return bool((logits_in(output, len(batch.labels)).abs() <= LARGEST).all())


def trained(steps: Steps, epoch: Callable[[int], None]) -> Iterator[Callable[[], Update]]:
    """Train, and yield after every epoch what returns the weights then (see `verifix.stages.finetune.Training`).

    Parameters
    ----------
    steps
        The weights.
    epoch
        Takes the steps of one epoch, given its number from 0.

    Yields
    ------
    callable
        Once an epoch has led nowhere, that of the last one that has not.
    """
    context, weights = steps.context, steps.weights
    over = False
    for number in itertools.count():
        if not over:
            before = {name: weight.clone() for name, weight in weights.items()}
            epoch(number)
            over = not steps.sane()
            if over:
                for name, weight in weights.items():
                    weight.copy_(before[name])
        yield lambda: {name: context.writable(name).copy_(weight) for name, weight in weights.items()}

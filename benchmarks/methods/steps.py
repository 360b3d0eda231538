"""Short trainings by gradient steps, one epoch after the other, for the methods that are one.

Steps are those of SGD with momentum, in eval mode. Where a method raises a loss that has no upper bound, weights may
run off; so long gradients are cut to `LONGEST`, and an epoch that leads to logits above `LARGEST` counts as if it had
not been, and ends the training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from verifix.borrow import run_model, to_device
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
        with self.context.corrected(self.weights) as model, differentiable(model, self.weights) as live:
            for batch in samples.batches(order, batch_size(len(order))):
                output = run_model(model, to_device(batch.inputs, device), samples.forward)
                lowered = loss(logits_in(output, len(batch.labels)), batch.indices)
                slopes = torch.autograd.grad(lowered, list(live.values()), allow_unused=True)
                for weight, slope in zip(self.weights.values(), slopes, strict=True):
                    weight.grad = slope
                torch.nn.utils.clip_grad_norm_(self.weights.values(), LONGEST)
                self.optimizer.step()
                for name, weight in self.weights.items():
                    live[name].data.copy_(weight)

    def sane(self) -> bool:
        """Tell whether what the network makes of the context's first samples still looks like logits."""
        samples, indices = self.context.samples, self.context.indices
        with self.context.corrected(self.weights) as model:
            batch = next(samples.batches(indices, batch_size(len(indices))))
            output = run_model(model, to_device(batch.inputs, self.context.device), samples.forward)
            return bool((logits_in(output, len(batch.labels)).abs() <= LARGEST).all())


class Training:
    """A training that goes on as far as it is asked to, and keeps the weights of the epochs that were asked for.

    Parameters
    ----------
    steps
        The weights.
    epoch
        Takes the steps of one epoch, given its number from 0.
    """

    def __init__(self, steps: Steps, epoch: Callable[[int], None]) -> None:
        self.steps = steps
        self.epoch = epoch
        self.done = 0
        self.over = False
        self.asked: dict[int, Update] = {}

    def after(self, epochs: int) -> Update:
        """Return the weights after so many epochs.

        Parameters
        ----------
        epochs
            How many; in ascending order, or one that has been asked for before.

        Returns
        -------
        Update
            The weights, in the dtype they will have.

        Raises
        ------
        ValueError
            If the training has gone past them, and they were not kept.
        """
        if epochs in self.asked:
            return self.asked[epochs]
        if epochs < self.done:
            raise ValueError(f"training has gone on to epoch {self.done}, and epoch {epochs} was not kept")
        while self.done < epochs:
            self._go_on()
            self.done += 1
        context = self.steps.context
        self.asked[epochs] = {name: context.writable(name).copy_(w) for name, w in self.steps.weights.items()}
        return self.asked[epochs]

    def _go_on(self) -> None:
        """Take one more epoch, unless that leads nowhere."""
        if self.over:
            return
        weights = self.steps.weights
        before = {name: weight.clone() for name, weight in weights.items()}
        self.epoch(self.done)
        if not self.steps.sane():
            self.over = True
            for name, weight in weights.items():
                weight.copy_(before[name])


@contextmanager
def differentiable(model: nn.Module, names: Mapping[str, object]) -> Iterator[dict[str, Tensor]]:
    """Let gradients reach some parameters of a model and no others; their flags come back in any case.

    Parameters
    ----------
    model
        The model.
    names
        Names of its parameters.

    Yields
    ------
    dict
        The parameters, in the order of their names.
    """
    parameters = dict(model.named_parameters())
    flags = {name: parameter.requires_grad for name, parameter in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in names)
        with torch.enable_grad():
            yield {name: parameters[name] for name in names}
    finally:
        for name, flag in flags.items():
            parameters[name].requires_grad_(flag)

"""Trainings by gradient steps in eval mode, one epoch after the other, for the methods that are one.

Where a method raises a loss that has no upper bound, weights may run off. So `momentum` cuts long gradients to
`LONGEST`, and in `trained` an epoch that leads to logits above `LARGEST` counts as if it had not been, and ends the
training.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from verifix.model.gradients import differentiable
from verifix.model.predict import logits_in
from verifix.model.run import run_model, to_device
from verifix.model.samples import Samples
from verifix.model.weights import Update
from verifix.recipe.context import Context
from verifix.recipe.stages.training import trainable

MOMENTUM = 0.9

LONGEST = 10.0
"""The longest gradient, over all parameters, that a step follows; longer ones are cut to it."""

STEPS, BATCHES = 12, (32, 128)
"""Steps per epoch, as far as batches stay within these sizes: many short epochs, each a setting of its own."""

LARGEST = 1e6
"""Logits that no trained network has: from there it is not far to numbers that are not finite."""

Loss = Callable[[Tensor, Sequence[int]], Tensor]
"""(logits ``[n, classes]``, which samples they are of) → what a step lowers, a scalar."""

Optimizer = Callable[[list[Tensor]], torch.optim.Optimizer]

T = TypeVar("T")


def samples_in(inputs: Any) -> int:
    """Return how many samples a batch of inputs holds: a tensor ``[n, …]``, or several by name or in a row."""
    if isinstance(inputs, Tensor):
        return len(inputs)
    return samples_in(next(iter(inputs.values() if isinstance(inputs, Mapping) else inputs)))


def adam(context: Context, rate: float) -> Optimizer:
    """Return what makes Adam at a rate."""
    fused = context.run.device.type in ("cpu", "cuda")  # a third of the time
    return lambda weights: torch.optim.Adam(weights, lr=rate, fused=fused)


def momentum(rate: float) -> Optimizer:
    """Return what makes SGD with momentum, its gradients cut to `LONGEST` all together."""
    return lambda weights: _CutSGD(weights, lr=rate, momentum=MOMENTUM)


class _CutSGD(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        """Take one step along gradients that are cut."""
        weights = [weight for group in self.param_groups for weight in group["params"] if weight.grad is not None]
        length = torch.nn.utils.get_total_norm([weight.grad for weight in weights])
        cut = (LONGEST / (length + 1e-6)).clamp(max=1.0)
        for weight in weights:
            weight.grad = weight.grad * cut  # not in place: two may be one tensor
        return super().step(closure)


def batch_size(count: int) -> int:
    """Return the samples per step of a training on so many samples."""
    return min(max(count // STEPS, BATCHES[0]), BATCHES[1])


class Steps:
    """Weights of a context's model that steps are taken on; the model itself stays as it is.

    Parameters
    ----------
    context
        Where to take the weights from.
    optimizer
        Makes the optimizer of the weights.
    batch
        Samples per step; None: see `STEPS`.
    """

    def __init__(self, context: Context, optimizer: Optimizer, batch: int | None = None) -> None:
        self.context, self.batch = context, batch
        self.weights = {name: context.parameter(name).detach().clone() for name in trainable(context)}
        self.optimizer = optimizer(list(self.weights.values()))
        self.generator = torch.Generator().manual_seed(context.run.seed)

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
        batches = samples.batches(order, self.batch or batch_size(len(order)))
        self.over(((batch.inputs, batch.indices) for batch in batches), loss)

    def over(self, batches: Iterable[tuple[Any, T]], loss: Callable[[Tensor, T], Tensor]) -> None:
        """Take one step per batch.

        Parameters
        ----------
        batches
            Inputs, and what the loss needs to know about them.
        loss
            (logits, that) → what the step lowers, a scalar.
        """
        device, forward = self.context.run.device, self.context.run.samples.forward
        with self.context.corrected(self.weights) as model:
            parameters = dict(model.named_parameters())
            live = {name: parameters[name] for name in self.weights}
            with differentiable(parameters, live):
                for inputs, known in batches:
                    output = run_model(model, to_device(inputs, device), forward)
                    lowered = loss(logits_in(output, samples_in(inputs)), known)
                    slopes = torch.autograd.grad(lowered, list(live.values()), allow_unused=True)
                    for weight, slope in zip(self.weights.values(), slopes, strict=True):
                        weight.grad = slope
                    self.optimizer.step()
                    for name, weight in self.weights.items():
                        live[name].data.copy_(weight)

    def sane(self) -> bool:
        """Tell whether what the network makes of the context's first samples still looks like logits."""
        samples, indices = self.context.run.samples, self.context.indices
        with self.context.corrected(self.weights) as model:
            batch = next(samples.batches(indices, batch_size(len(indices))))
            output = run_model(model, to_device(batch.inputs, self.context.run.device), samples.forward)
            return bool((logits_in(output, len(batch.labels)).abs() <= LARGEST).all())


def trained(steps: Steps, epoch: Callable[[int], None]) -> Iterator[Callable[[], Update]]:
    """Train, and yield after every epoch what returns the weights then (see `verifix.recipe.stages.finetune.Training`).

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

"""Training a context's weights: Adam relative to each tensor's size, its rate falling to zero, weights averaged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from verifix.capture.layer import rounded_once
from verifix.capture.parameters import partly_shared
from verifix.errors import DataError
from verifix.model.gradients import differentiable, slopes_of
from verifix.model.samples import Samples
from verifix.model.sources import Items, collate
from verifix.model.weights import Update
from verifix.recipe.context import Context
from verifix.recipe.frozen import frozen

SMALLEST_SIZE = 1e-3
"""The least size that counts, so that tensors of zeros can move; the ε₂ of Adafactor (arXiv 1804.04235, section 8)."""

PULL = 0.01
"""Weight μ of the pull, μ / 2 · ‖w − w₀‖²: Li, Grandvalet and Davoine, L2-SP (arXiv 1802.01483)."""

LATE = 3
"""How much late weights count in the average: it is that of η = 3 by Shamir and Zhang (arXiv 1212.1824, section 4)."""

STEPS, SMALLEST, LARGEST = 12, 32, 128
"""Steps per epoch, as far as batches stay within these sizes."""

FULL = 1.5e7
"""Multiply-adds forward that a step takes at least, as far as batches stay within their sizes: below, processors spend
time on something else, and as many samples seen in fewer steps are as good (docs/stages.md)."""

Batch = tuple[Any, Callable[[Tensor], Tensor], int]
"""Inputs, their loss (logits ``[n, outputs]`` → a scalar), and how many they are."""


def batch_size(count: int, work: float) -> int:
    """Return the samples per step for so many samples, each of which takes so many multiply-adds forward."""
    return min(max(count // STEPS, int(FULL / max(work, 1)), SMALLEST), LARGEST)


class Training:
    """A training that goes on as far as it is asked to, and keeps the weights of the points that were asked for.

    Parameters
    ----------
    points
        Goes on to the next point, such as an epoch, and yields what returns the weights then.
    """

    def __init__(self, points: Iterator[Callable[[], Update]]) -> None:
        self.points = points
        self.asked: dict[int, Update] = {}
        self.done = 0

    def after(self, point: int) -> Update:
        """Return the weights at a point.

        Parameters
        ----------
        point
            Which one, from 1; in ascending order, or one that has been asked for before.

        Returns
        -------
        Update
            The weights, in the dtype they will have.

        Raises
        ------
        ValueError
            If the training has gone past it, and its weights were not kept.
        """
        if point <= self.done and point not in self.asked:
            raise ValueError(f"training is at {self.done} already, and {point} was not kept")
        while point not in self.asked:
            weights = next(self.points)
            self.done += 1
            if self.done == point:
                self.asked[point] = weights()
        return self.asked[point]


@dataclass(frozen=True)
class Schedule:
    """How a training goes.

    Attributes
    ----------
    rate
        Learning rate of Adam at the start, relative to the root mean square of each tensor; it falls to zero along half
        a cosine (Loshchilov and Hutter, arXiv 1608.03983).
    steps
        All steps.
    points
        Numbers of steps, ascending, after which the weights are wanted.
    loose
        Whether the model's own dropout is on.
    """

    rate: float
    steps: int
    points: Sequence[int]
    loose: bool = False


def descend(context: Context, schedule: Schedule, batch: Callable[[], Batch]) -> Iterator[Callable[[], Update]]:
    """Train the weights of a context, in eval mode but for dropout, pulled towards what they were (L2-SP).

    BatchNorm keeps its statistics: a few hundred samples say too little about them.

    Parameters
    ----------
    context
        Where to start.
    schedule
        How to train.
    batch
        Called once per step.

    Yields
    ------
    callable
        At each point of the schedule, what returns the average of the weights so far, late ones counting more, rounded
        to the dtype that they will have.

    Raises
    ------
    DataError
        If the model passes on no gradients, or weights are not finite.
    """
    names, run = trainable(context), context.run
    weights = [context.parameter(name) for name in names]
    first, sizes = _flat(weights), _flat([torch.full_like(weight, _size(weight)) for weight in weights])
    # All weights are one tensor to the optimizer, and in units of their size: a step of a small network takes no longer
    # than what it multiplies, and one rate suits all.
    moved = torch.zeros_like(first).requires_grad_()
    average, now = first.clone(), first.clone()
    fused = run.device.type in ("cpu", "cuda")  # a third of the time
    optimizer = torch.optim.Adam([moved], fused=fused)
    step = 0
    for point in schedule.points:
        torch.manual_seed(run.seed + step)  # dropout draws from the state of the process, which others draw from, too
        views = [part.view_as(weight) for part, weight in zip(_parts(now, weights), weights, strict=True)]
        with context.corrected(dict(zip(names, views, strict=True))) as model, _dropping_out(model, on=schedule.loose):
            parameters = dict(model.named_parameters())
            live = {name: parameters[name] for name in names}
            with differentiable(parameters, live):
                while step < point:
                    inputs, loss, count = batch()
                    found = slopes_of(model, inputs, count, live, loss, run.device, run.samples.forward)
                    with torch.no_grad():
                        slopes = [found[name] if name in found else torch.zeros_like(live[name]) for name in names]
                        moved.grad = _flat(slopes).addcmul_(sizes, moved, value=PULL)
                        falling = schedule.rate * (1 + math.cos(math.pi * step / schedule.steps)) / 2
                        optimizer.param_groups[0]["lr"] = falling
                        optimizer.step()
                        torch.addcmul(first, sizes, moved, out=now)
                        average.lerp_(now, (1 + LATE) / (step + 1 + LATE))
                        torch._foreach_copy_([live[name].data for name in names], views)
                    step += 1
        if not torch.isfinite(now).all():
            raise DataError("training led to weights that contain NaN or Inf; correct the model in float32")
        yield lambda: {
            name: rounded(context, name, part.view_as(weight))
            for name, weight, part in zip(names, weights, _parts(average, weights), strict=True)
        }


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """Return the numbers of some tensors in one, in float32 or wider: steps would vanish in half precision."""
    dtype = max((torch.promote_types(x.dtype, torch.float32) for x in tensors), key=lambda d: d.itemsize)
    return torch.cat([x.detach().to(dtype).reshape(-1) for x in tensors])


def _parts(flat: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.split(flat, [x.numel() for x in tensors]))


class Pool:
    """Samples to draw batches from, in random order; what is left in the end and fills no batch is left out.

    Parameters
    ----------
    samples, indices
        The samples.
    size
        Samples per batch.
    seed
        Seed of the order.

    Attributes
    ----------
    generator
        What draws the order, and may draw more.
    """

    def __init__(self, samples: Samples, indices: Sequence[int], size: int, seed: int) -> None:
        self.samples, self.indices, self.size = samples, list(indices), min(size, len(indices))
        self.generator = torch.Generator().manual_seed(seed)
        self._left: list[int] = []
        self._stacked = _stacked(samples, self.indices)

    def draw(self) -> tuple[Any, Tensor]:
        """Return the next inputs, not to be written to, and where they are in `indices`, int64 ``[size]``."""
        if len(self._left) < self.size:
            self._left = torch.randperm(len(self.indices), generator=self.generator).tolist()
        rows, self._left = self._left[: self.size], self._left[self.size :]
        places = torch.tensor(rows)
        if self._stacked is not None:
            return self._stacked[places], places
        (batch,) = self.samples.batches([self.indices[row] for row in rows], self.size)
        return batch.inputs, places


def _stacked(samples: Samples, indices: Sequence[int]) -> Tensor | None:
    """Return inputs that are tensors in memory as one tensor ``[n, ...]``, read far faster; None for others."""
    if not isinstance(samples.source.dataset, Items) or samples.source.collate is not collate:
        return None
    batch = next(samples.batches(indices, len(indices)))
    return batch.inputs if isinstance(batch.inputs, Tensor) and not batch.inputs.is_nested else None


@contextmanager
def _dropping_out(model: nn.Module, *, on: bool) -> Iterator[None]:
    """Turn the dropout of a borrowed model on, and off again."""
    modules = dropouts(model) if on else []
    try:
        for module in modules:
            module.training = True
        yield
    finally:
        for module in modules:
            module.training = False


def dropouts(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a model that drop out."""
    return [module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0]


def _size(weight: Tensor) -> float:
    """Return the root mean square of a tensor, bounded below so that zeros can move."""
    return max(float(weight.double().square().mean().sqrt()), SMALLEST_SIZE)


def rounded(context: Context, name: str, weight: Tensor) -> Tensor:
    """Return a trained parameter in the dtype that it will have."""
    target = context.writable(name)
    return target.copy_(rounded_once(weight.double(), target.dtype))


def _is_plain(x: Tensor) -> bool:
    """Tell whether a step can be taken from a tensor: not so in 8 bits and fewer, whose steps would be rounded away."""
    return x.is_floating_point() and x.element_size() > 1 and x.layout is torch.strided


def trainable(context: Context) -> list[str]:
    """Return the parameters that may be trained, but for frozen ones; with include or exclude those of their layers."""
    selection, parameters = context.run.selection, dict(context.run.model.named_parameters())
    apart = parameters.keys() - partly_shared(parameters) - frozen(context)  # writing a shared one would change another
    floating = [name for name, x in parameters.items() if _is_plain(x) and name in apart]
    if selection.include is None and not selection.exclude:
        return floating
    own = {name for layer in context.layers for name in layer.parameters}
    own |= {bias.parameter for layer, bias in context.run.collected.biases.items() if layer in set(context.layers)}
    return [name for name in floating if name in own]

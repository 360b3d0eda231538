"""A short training on the verified labels, pulled towards the weights as the earlier stages left them (L2-SP)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from verifix.capture.layer import rounded_once
from verifix.capture.parameters import partly_shared
from verifix.model.gradients import gradients
from verifix.model.weights import Update
from verifix.recipe.candidates import Listed
from verifix.recipe.context import Context
from verifix.recipe.frozen import frozen
from verifix.recipe.stages.base import Stage

RATES = (1e-3, 1e-2)
"""Learning rates of Adam, relative to the size of each tensor; a weight of one network is a tenth of another's."""

SMALLEST_SIZE = 1e-3
"""The least size that counts, so that tensors of zeros can move; the ε₂ of Adafactor (arXiv 1804.04235, section 8)."""

SEEN, FEWEST, MOST = 2400, 2, 40
"""Samples seen in the longest training, and bounds on its epochs."""

STEPS, SMALLEST, LARGEST = 12, 32, 128
"""Steps per epoch, as far as batches stay within these sizes."""

PULL = 0.01
"""Weight μ of the pull, μ / 2 · ‖w − w₀‖²: Li, Grandvalet and Davoine, L2-SP (arXiv 1802.01483)."""


class FineTune(Stage):
    """Adam on the mean cross-entropy plus μ / 2 · ‖w − w₀‖², in eval mode; its strength is (rate, epochs).

    BatchNorm keeps its statistics and nothing drops out: a few hundred samples say too little about either.

    Attributes
    ----------
    trainings
        Those that have begun, by rate.
    """

    name = "finetune"
    about = "A short training of all weights, pulled towards their previous values."
    numbers = ("rate", "epochs")
    automatic = True
    trains = True

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.trainings: dict[float, Training] = {}

    def obstacle(self) -> str:
        """Say if no parameter may be changed."""
        return "" if trainable(self.context) else "no parameter may be changed"

    def candidates(self) -> Listed:
        """Return each rate with a short and a long training; the more samples, the fewer epochs."""
        longest = _longest(self.context)
        return Listed(tuple((rate, float(epochs)) for rate in RATES for epochs in (max(1, longest // 4), longest)))

    def fit(self, strength: tuple[float, float]) -> Update:
        """Return the weights after training.

        Parameters
        ----------
        strength
            Learning rate and epochs.

        Returns
        -------
        Update
            New values of all trained parameters.
        """
        rate, epochs = strength
        if rate not in self.trainings:
            self.trainings[rate] = Training(_epochs(self.context, rate))
        return self.trainings[rate].after(int(epochs))

    def release(self) -> None:
        """Let go of the trainings, whose optimizers hold as much as the model thrice."""
        self.trainings = {}


def _longest(context: Context) -> int:
    """Return the epochs of the longest training."""
    return min(max(round(SEEN / len(context.indices)), FEWEST), MOST)


def batch_size(count: int) -> int:
    """Return the samples per step for so many samples."""
    return min(max(count // STEPS, SMALLEST), LARGEST)


class Training:
    """A training that goes on as far as it is asked to, and keeps the weights of the epochs that were asked for.

    Parameters
    ----------
    epochs
        Goes on by one epoch at a time, and yields what returns the weights then.
    """

    def __init__(self, epochs: Iterator[Callable[[], Update]]) -> None:
        self.epochs = epochs
        self.asked: dict[int, Update] = {}
        self.done = 0

    def after(self, epochs: int) -> Update:
        """Return the weights after so many epochs.

        Parameters
        ----------
        epochs
            How many, from 1; in ascending order, or one that has been asked for before.

        Returns
        -------
        Update
            The weights, in the dtype they will have.

        Raises
        ------
        ValueError
            If the training has gone past them, and they were not kept.
        """
        if epochs <= self.done and epochs not in self.asked:
            raise ValueError(f"training is at epoch {self.done} already, and epoch {epochs} was not kept")
        while epochs not in self.asked:
            weights = next(self.epochs)
            self.done += 1
            if self.done == epochs:
                self.asked[epochs] = weights()
        return self.asked[epochs]


def _epochs(context: Context, rate: float) -> Iterator[Callable[[], Update]]:
    """Train, and yield after every epoch what returns the weights then, rounded to the dtype they will have."""
    names = trainable(context)
    weights = {name: _precise(context.parameter(name)) for name in names}
    first = {name: weight.clone() for name, weight in weights.items()}
    fused = context.run.device.type in ("cpu", "cuda")  # a third of the time
    optimizer = torch.optim.Adam([{"params": [w], "lr": rate * _size(w)} for w in weights.values()], fused=fused)
    generator = torch.Generator().manual_seed(context.run.seed)
    run, indices = context.run, context.indices
    size = batch_size(len(indices))
    while True:
        order = [indices[i] for i in torch.randperm(len(indices), generator=generator).tolist()]
        with context.corrected(weights) as model:
            live = dict(model.named_parameters())
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                slopes = gradients(model, run.samples, batch, names, batch_size=run.batch_size, device=run.device)
                for name, weight in weights.items():
                    weight.grad = (weight - first[name]).mul_(PULL).add_(slopes[name])
                optimizer.step()
                for name, weight in weights.items():
                    live[name].data.copy_(weight)
        yield lambda: {name: _rounded(context, name, weight) for name, weight in weights.items()}


def _size(weight: Tensor) -> float:
    """Return the root mean square of a tensor, bounded below so that zeros can move."""
    return max(float(weight.square().mean().sqrt()), SMALLEST_SIZE)


def _precise(parameter: Tensor) -> Tensor:
    """Return a copy in float32 or wider: steps would vanish in half precision."""
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)


def _rounded(context: Context, name: str, weight: Tensor) -> Tensor:
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

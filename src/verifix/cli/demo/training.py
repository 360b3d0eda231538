"""Train a small network to the point where it has memorised its labels, wrong ones included."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from verifix.losses import correct_or_not
from verifix.model.threads import threads_for


def wrong_labels(labels: Tensor, rate: float, classes: int, seed: int) -> Tensor:
    """Replace a share of labels by another class, drawn evenly.

    Parameters
    ----------
    labels
        int64 ``[n]``.
    rate
        Share to replace; exactly ``round(rate · n)`` labels become wrong.
    classes
        Number of classes.
    seed
        Seed.

    Returns
    -------
    Tensor
        int64 ``[n]``.
    """
    generator = np.random.default_rng(seed)
    count = len(labels)
    chosen = generator.choice(count, round(rate * count), replace=False)
    noisy = labels.clone()
    noisy[chosen] = (noisy[chosen] + torch.from_numpy(generator.integers(1, classes, len(chosen)))) % classes
    return noisy


def train(
    model: nn.Module, inputs: Tensor, labels: Tensor, *, epochs: int, rate: float, batch: int, seed: int
) -> nn.Module:
    """Train with Adam on a one-cycle schedule, and return the model in eval mode.

    Parameters
    ----------
    model
        The network.
    inputs, labels
        Training samples.
    epochs, rate, batch
        Passes, peak learning rate, batch size.
    seed
        Seed of the order of samples.

    Returns
    -------
    nn.Module
        The same network.
    """
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * (len(labels) // batch)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    sizes = [batch * weight.numel() for weight in model.parameters() if weight.ndim == 2]
    with threads_for(lambda: sum(sizes) / len(sizes)):
        for _ in range(epochs):
            order = torch.randperm(len(labels), generator=generator)
            for index in order.split(batch)[: len(labels) // batch]:
                optimizer.zero_grad()
                F.cross_entropy(model(inputs[index]), labels[index]).backward()
                optimizer.step()
                schedule.step()
    return model.eval()


@torch.no_grad()
def percent_right(model: nn.Module, inputs: Tensor, labels: Tensor) -> float:
    """Return the accuracy in percent."""
    return 100 * float(correct_or_not(model(inputs), labels).mean())


def mlp(widths: tuple[int, ...], seed: int, *, norm: bool) -> nn.Sequential:
    """Build a multilayer perceptron, with BatchNorm before each ReLU if `norm`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for i, (fan_in, fan_out) in enumerate(zip(widths, widths[1:], strict=False)):
            layers.append(nn.Linear(fan_in, fan_out))
            if i < len(widths) - 2:
                layers += [nn.BatchNorm1d(fan_out), nn.ReLU()] if norm else [nn.ReLU()]
    return nn.Sequential(*layers)

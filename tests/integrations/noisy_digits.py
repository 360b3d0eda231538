"""Handwritten digits with wrong labels among those of the training, and a small network for them."""

from __future__ import annotations

import functools

import torch
from sklearn.datasets import load_digits
from sklearn.utils import shuffle
from torch import nn

VERIFIED = {"verified_from": "unseen", "drawn": "random", "recipe": "verifix", "progress": False}


@functools.cache
def digits():
    """Return inputs, true labels, and the labels of the training: 300 of the first 1,000 are wrong."""
    x, y = map(torch.from_numpy, shuffle(*load_digits(return_X_y=True), random_state=5))
    x, given = x.float() / 16, y.clone()
    generator = torch.Generator().manual_seed(5)
    given[:300] = (y[:300] + torch.randint(1, 10, (300,), generator=generator)) % 10
    return x, y, given


def network() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))


def verified():
    x, y, _ = digits()
    return x[1000:1200], y[1000:1200]


@torch.no_grad()
def accuracy(model: nn.Module) -> float:
    """Percent of the digits that nothing else uses."""
    x, y, _ = digits()
    training = model.training
    right = (model.eval()(x[1200:]).argmax(1) == y[1200:]).float().mean()
    model.train(training)
    return 100 * float(right)


@functools.cache
def _trained() -> nn.Module:
    x, _, given = digits()
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:1000]), given[:1000]).backward()
        optimizer.step()
    return model.eval()


def trained() -> nn.Module:
    """Return the network after its training on wrong labels; a fresh copy each time."""
    import copy

    return copy.deepcopy(_trained())

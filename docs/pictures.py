"""The pictures of how-it-works.md, made when the site is built."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn

import verifix

BLUE, ORANGE, GRAY = "tab:blue", "tab:orange", "0.6"


@dataclass(frozen=True)
class Example:
    """Two crescents of points, a network that learned wrong labels for them, and its correction."""

    points: Tensor
    given: Tensor
    verified: tuple[Tensor, Tensor]
    model: nn.Sequential
    correction: verifix.Correction


@functools.cache
def example() -> Example:
    """Train and correct once for all pictures."""
    from sklearn.datasets import make_moons

    torch.manual_seed(0)
    points, labels = (torch.from_numpy(array) for array in make_moons(500, noise=0.2, random_state=0))
    points, given = points.float(), labels.clone()
    wrong = torch.randperm(300)[:90]
    given[wrong] = 1 - given[wrong]
    model = nn.Sequential(nn.Linear(2, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(300):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(points[:300]), given[:300]).backward()
        optimizer.step()
    verified = points[300:], labels[300:]
    correction = verifix.correct(
        model.eval(), verified, verified_from="unseen", recipe="verifix", spectra=True, progress=False
    )
    return Example(points[:300], given[:300], verified, model, correction)


def boundaries() -> None:
    """Draw what the network answers before and after."""
    case = example()
    x, y = np.meshgrid(np.linspace(-2, 3, 300), np.linspace(-1.5, 2, 300))
    grid = torch.from_numpy(np.stack([x.ravel(), y.ravel()], 1)).float()
    _, panels = plt.subplots(1, 2, figsize=(8, 3.2), layout="constrained", sharey=True)
    for axes, network, title in zip(panels, (case.model, case.correction.model), ("before", "after"), strict=True):
        with torch.no_grad():
            answers = network(grid).argmax(1).reshape(x.shape)
        axes.contourf(x, y, answers, levels=[-0.5, 0.5, 1.5], colors=[BLUE, ORANGE], alpha=0.25)
        colours = [ORANGE if label else BLUE for label in case.given]
        axes.scatter(*case.points.T, c=colours, s=9)
        axes.set(title=title, xticks=[], yticks=[])


def spectrum() -> None:
    """Draw the eigenvalues of a layer's inputs, and how much of each direction is kept."""
    case = example()
    shares = np.array(case.correction.spectra["2.weight"])[:60]
    _, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    left.semilogy(range(1, len(shares) + 1), shares, ".-", color=BLUE)
    left.set(xlabel="direction, strongest first", ylabel="share r of what the samples excite", ylim=(1e-8, 2))
    r = np.logspace(-8, 0, 200)
    for alpha in (10, 1000, 100_000):
        right.semilogx(r, alpha * r / ((alpha - 1) * r + 1), label=f"α = {alpha:,}")
    right.set(xlabel="share r of a direction", ylabel="how much of it is kept, λ")
    right.legend()


def curve() -> None:
    """Draw the cross-fitted loss over the strength."""
    correction = example().correction
    (unchanged,) = (point for point in correction.curve if point.strength is None)
    points = sorted((point.strength, point.loss) for point in correction.curve if point.strength is not None)
    _, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    axes.semilogx(*zip(*points, strict=True), "o-", color=BLUE, label="corrected")
    axes.axhline(unchanged.loss, color=GRAY, linestyle="--", label="no change")
    if correction.alpha is not None:
        axes.axvline(correction.alpha, color=ORANGE, label=f"chosen, α = {correction.alpha:,.0f}")
    axes.set(xlabel="strength α", ylabel="loss on held-out samples")
    axes.legend()


def folds() -> None:
    """Draw which samples make and which score the corrections of a nested proof."""
    _, axes = plt.subplots(figsize=(6, 2.6), layout="constrained")
    for row in range(5):
        for column in range(5):
            colour = ORANGE if row == column else BLUE
            axes.barh(-row, 0.96, left=column, height=0.8, color=colour, alpha=0.8)
            axes.text(column + 0.48, -row, "judges" if row == column else "corrects", ha="center", va="center")
    axes.set(yticks=[-row for row in range(5)], yticklabels=[f"correction {row + 1}" for row in range(5)], xticks=[])
    axes.set_xlabel("five folds of the verified samples")
    axes.spines[:].set_visible(False)

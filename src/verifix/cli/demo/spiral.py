"""Two spirals with wrong labels, as in the paper: decision boundaries after clean labels, wrong ones, correction."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from verifix.algorithm import correct
from verifix.cli.demo.outcome import Outcome
from verifix.cli.demo.told import tell_of
from verifix.cli.demo.training import mlp, percent_right, train, wrong_labels

TRAINING, VERIFIED, UNSEEN, WRONG = 250, 200, 2000, 0.25


def spirals(count: int, seed: int, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """Draw points of two interleaved spirals.

    Parameters
    ----------
    count
        How many.
    seed
        Seed.
    noise
        Standard deviation of the points around their spiral, which has a radius of up to 10.

    Returns
    -------
    inputs : Tensor
        float32 ``[count, 2]``, in about −5 to 5.
    labels : Tensor
        Which spiral, int64 ``[count]``.
    """
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 2
    angle = 1.0 + 2.2 * np.pi * np.sqrt(generator.random(count))
    points = np.stack([np.cos(angle), np.sin(angle)], 1) * (1.3 * angle * (1 - 2 * labels))[:, None]
    points += noise * generator.standard_normal((count, 2))
    return torch.from_numpy(points / 2).float(), torch.from_numpy(labels)


def trained(inputs: Tensor, labels: Tensor, seed: int) -> nn.Module:
    """Train an MLP until it has memorised its labels."""
    model = mlp((2, 512, 512, 512, 2), seed, norm=True)
    return train(model, inputs, labels, epochs=400, rate=0.01, batch=TRAINING, seed=seed)


def run(seed: int, folder: Path | None) -> Outcome:
    """Train on clean and on wrong labels, correct the second, score; write report and pictures if there is a folder."""
    x, true = spirals(TRAINING, 3 * seed)
    given = wrong_labels(true, WRONG, 2, seed)
    verified, unseen = spirals(VERIFIED, 3 * seed + 1), spirals(UNSEEN, 3 * seed + 2)
    model = trained(x, given, seed)
    correction = correct(model, verified, verified_from="unseen", seed=seed, progress=False)
    names: tuple[str, ...] = ()
    if folder is not None:
        from verifix.cli.demo import pictures

        clean = trained(x, true, seed)
        panels = [
            (f"clean labels\n{percent_right(clean, *unseen):.1f}% right", clean, true),
            (f"{WRONG:.0%} wrong labels\n{percent_right(model, *unseen):.1f}% right", model, given),
            (f"corrected\n{percent_right(correction.model, *unseen):.1f}% right", correction.model, given),
        ]
        paper = correct(model, verified, verified_from="unseen", recipe="verifix", seed=seed, progress=False)
        report = tell_of("spiral", model, correction, unseen, folder)
        names = (report, pictures.decision_boundaries(panels, x, folder), pictures.strength_curve(paper, folder))
    return Outcome(
        f"A network learned two spirals from {TRAINING} points with {WRONG:.0%} wrong labels. {VERIFIED} further "
        "points were verified, and it was corrected from them.",
        percent_right(model, x, given),
        percent_right(model, *unseen),
        percent_right(correction.model, *unseen),
        correction.alpha,
        correction.kept,
        names,
    )

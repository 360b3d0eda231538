"""Handwritten digits with 30% wrong labels, corrected from 200 verified ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from verifix.algorithm import correct
from verifix.cli.commands.record import picture_of
from verifix.cli.demo.outcome import Outcome
from verifix.cli.demo.told import tell_of
from verifix.cli.demo.training import mlp, percent_right, train, wrong_labels
from verifix.correction import Correction
from verifix.losses import predicted_classes

TRAINING, VERIFIED, WRONG = 1000, 200, 0.3


@dataclass(frozen=True)
class Digits:
    """The digits of scikit-learn in three parts that share nothing.

    Attributes
    ----------
    inputs
        float32 ``[1797, 64]``, 8 × 8 pixels in 0 to 1.
    labels
        The true digits, int64 ``[1797]``.
    given
        What the network is trained on: `labels` of the training part with 30% wrong, int64 ``[1000]``.
    training, verified, unseen
        Indices of each part: 1,000, 200 and 597.
    """

    inputs: Tensor
    labels: Tensor
    given: Tensor
    training: Tensor
    verified: Tensor
    unseen: Tensor


def load(seed: int) -> Digits:
    """Split the digits by seed and spoil the labels of the training part."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    labels = torch.from_numpy(data.target).long()
    inputs = torch.from_numpy(data.data).float() / 16
    training, rest = train_test_split(
        np.arange(len(labels)), train_size=TRAINING, random_state=seed, stratify=data.target
    )
    verified, unseen = train_test_split(rest, train_size=VERIFIED, random_state=seed, stratify=data.target[rest])
    given = wrong_labels(labels[training], WRONG, 10, seed)
    return Digits(inputs, labels, given, *map(torch.from_numpy, (training, verified, unseen)))


def trained(digits: Digits, seed: int) -> nn.Module:
    """Train an MLP with BatchNorm on the wrong labels until it has memorised them."""
    model = mlp((64, 256, 256, 10), seed, norm=True)
    return train(model, digits.inputs[digits.training], digits.given, epochs=60, rate=0.01, batch=50, seed=seed)


def run(seed: int, folder: Path | None) -> Outcome:
    """Train, correct and score one seed; write report and pictures if there is a folder."""
    digits = load(seed)
    model = trained(digits, seed)
    verified = digits.inputs[digits.verified], digits.labels[digits.verified]
    correction = correct(model, verified, verified_from="unseen", seed=seed, progress=False)
    unseen = digits.inputs[digits.unseen], digits.labels[digits.unseen]
    written: tuple[str, ...] = ()
    if folder is not None:
        paper = correct(
            model, verified, verified_from="unseen", recipe="verifix", seed=seed, progress=False
        )  # whose strengths are drawn
        images = unseen[0].reshape(-1, 1, 8, 8)
        report = tell_of("digits", model, correction, unseen, folder, lambda index: picture_of(1 - images[index]))
        written = (report, *_draw(digits, model, correction, paper, folder))
    return Outcome(
        f"A network learned {TRAINING} handwritten digits with {WRONG:.0%} wrong labels. {VERIFIED} digits it has not "
        "seen were verified, and it was corrected from them.",
        percent_right(model, digits.inputs[digits.training], digits.given),
        percent_right(model, *unseen),
        percent_right(correction.model, *unseen),
        correction.alpha,
        correction.kept,
        written,
    )


@torch.no_grad()
def _draw(digits: Digits, model: nn.Module, correction: Correction, paper: Correction, folder: Path) -> tuple[str, ...]:
    from verifix.cli.demo import pictures

    x = digits.inputs[digits.training]
    true, given = digits.labels[digits.training], digits.given
    before, after = predicted_classes(model(x)), predicted_classes(correction.model(x))
    wrong = (given != true) & (before == given) & (after == true)
    shown = wrong.nonzero().flatten()[:20]
    names = pictures.digits_set_right(
        x[shown].reshape(-1, 8, 8), given[shown], before[shown], after[shown], int(wrong.sum()), folder
    )
    return (pictures.strength_curve(paper, folder), names)

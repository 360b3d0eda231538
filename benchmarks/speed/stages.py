"""Whole corrections beside one forward pass over their samples, and beside fine-tuning at its best setting.

What the best setting is comes from the cells of the comparison with other methods: how many passes over the verified
samples the folds chose there, and how many it took to choose. The passes are run here; their choice is counted only.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

import verifix
from benchmarks.cells import FOLDER
from benchmarks.methods.finetune import BATCH
from benchmarks.speed.problems import Problem, capture, computing, forward, problem
from benchmarks.speed.rounds import Case, Found, Ready, median, timed
from verifix.model.clone import copy_model

FINETUNING = "fine-tuning"
RECIPES = {"recipe verifix": "verifix", "default recipe": "auto"}
PROOF = "nested proof"
REST = "the rest"

MOST_PASSES = 2
"""Passes of fine-tuning that a quick run takes the time of: the others are as long."""


@dataclass(frozen=True)
class Best:
    """The best setting of fine-tuning.

    Attributes
    ----------
    rate, passes
        The rate of Adam, and passes over the verified samples.
    choosing
        What choosing it took, in forward passes over all verified samples; one with gradients counts as three.
    """

    rate: float
    passes: int
    choosing: float


def best_setting(where: str, folder: Path = FOLDER) -> Best:
    """Return what the folds chose for fine-tuning, the median over seeds.

    Parameters
    ----------
    where
        Task, network, noise and number of verified samples, as folders of the cells.
    folder
        Where the cells are.

    Returns
    -------
    Best
        The setting.
    """
    records = [json.loads(path.read_text("utf-8")) for path in sorted((folder / where).glob("seed-*/finetuning.json"))]
    chosen = [record for record in records if isinstance(record["chosen"], list)]
    if not chosen:
        raise SystemExit(f"no fine-tuning was chosen in {folder / where}/seed-*/finetuning.json")
    return Best(
        median([record["chosen"][0] for record in chosen]),
        round(median([record["chosen"][1] for record in chosen])),
        median([record["runs"] / record["verified"] for record in chosen]),
    )


@dataclass(frozen=True)
class Network:
    """A network that is corrected.

    Attributes
    ----------
    title, name, count
        For reading, as in `problem`, and how many samples.
    cells
        Where its fine-tuning was compared.
    guess
        Roughly the seconds of each contender.
    """

    title: str
    name: str
    count: int
    cells: str
    guess: dict[str, float]


DIGITS = Network(
    "MLP of digits, 200 samples",
    "digits",
    200,
    "digits/mlp/symmetric-0.3/verified-200",
    {"forward": 0.1, "capture": 0.2, FINETUNING: 3, "recipe verifix": 2, "default recipe": 6},
)
VGG = Network(
    "VGG11-BN, 1,000 images",
    "vgg11_bn",
    1000,
    "cifar10/vgg11_bn/symmetric-0.25/verified-1000",
    {"forward": 3, "capture": 8, FINETUNING: 150, "recipe verifix": 60, "default recipe": 240},
)
FEW_VGG = Network(
    "VGG11-BN, 200 images",
    "vgg11_bn",
    200,
    "cifar10/vgg11_bn/symmetric-0.25/verified-200",
    {"forward": 0.6, "capture": 2, FINETUNING: 3, "recipe verifix": 40},
)


def cases(*, quick: bool) -> list[Case]:
    """Return the networks with their contenders; a quick run has fewer, and fewer images."""
    if quick:
        return [case_of(DIGITS, MOST_PASSES), case_of(FEW_VGG, MOST_PASSES)]
    proved = Network(VGG.title, VGG.name, VGG.count, VGG.cells, {**VGG.guess, PROOF: 600})
    return [case_of(DIGITS), case_of(proved)]


def case_of(network: Network, most_passes: int | None = None) -> Case:
    """Return the comparison for one network; of fine-tuning, up to so many passes are timed. The proof runs once."""
    return Case(network.title, network.guess, partial(_ready, network, most_passes), {PROOF: 1})


def _ready(network: Network, most_passes: int | None) -> Ready:
    case, best = problem(network.name, network.count), best_setting(network.cells)
    timed_passes = min(best.passes, most_passes or best.passes)
    run = {
        "forward": partial(forward, case),
        "capture": partial(capture, case),
        FINETUNING: partial(finetuned, case, best, timed_passes),
        PROOF: partial(_proved, case),
        **{name: partial(_corrected, case, recipe) for name, recipe in RECIPES.items()},
    }
    with computing(case) as threads:
        about: dict[str, Any] = {"samples": network.count, "threads": threads, "cells": network.cells}
    return Ready(run, about | {"rate": best.rate, "passes": best.passes, "choosing": best.choosing})


def finetuned(case: Problem, best: Best, passes: int) -> Found:
    """Time Adam on the cross-entropy over all parameters, in eval mode, and reckon up to the best number of passes.

    Parameters
    ----------
    case
        Network and samples.
    best
        Its best setting.
    passes
        How many passes are run.

    Returns
    -------
    dict
        "seconds" of all `best.passes`, and how many were "timed".
    """
    model = copy_model(case.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=best.rate, fused=True)
    generator = torch.Generator().manual_seed(0)

    def train() -> None:
        for _ in range(passes):
            for indices in torch.randperm(len(case.labels), generator=generator).split(BATCH):
                optimizer.zero_grad()
                cross_entropy(model(case.inputs[indices]), case.labels[indices]).backward()
                optimizer.step()

    with computing(case), torch.enable_grad():
        found = timed(train)
    return {"seconds": found["seconds"] * best.passes / passes, "timed": passes}


def _corrected(case: Problem, recipe: str) -> Found:
    """Time a correction as users call it; note what each stage took and what was chosen."""
    corrections: list[verifix.Correction] = []
    settings: dict[str, Any] = {"recipe": recipe, "verified_from": "unseen", "progress": False}
    found = timed(lambda: corrections.append(verifix.correct(case.model, case.inputs, case.labels, **settings)))
    (correction,) = corrections
    return found | {"stages": stage_seconds(correction), "strengths": correction.strengths}


def stage_seconds(correction: verifix.Correction) -> dict[str, float]:
    """Return what trying each stage took, over all paths that it is the last stage of."""
    found = {name: choice.seconds for name, choice in correction.choices.items() if choice.seconds is not None}
    tried: defaultdict[str, float] = defaultdict(float)
    for path in correction.paths:
        if path.stages and path.seconds is not None:
            tried[path.stages[-1]] += path.seconds
    return found | tried


def _proved(case: Problem) -> Found:
    proofs: list[verifix.Proof] = []
    settings: dict[str, Any] = {"verified_from": "unseen", "progress": False}
    found = timed(lambda: proofs.append(verifix.prove(case.model, case.inputs, case.labels, **settings)))
    return found | {"verdict": proofs[0].comparison.verdict}


def shares(stages: Sequence[Found]) -> dict[str, float]:
    """Return the median share of each stage in the time of a correction, and of what is no stage, in percent."""
    names = dict.fromkeys(name for run in stages for name in run["stages"])
    found = {name: median([100 * run["stages"].get(name, 0.0) / run["seconds"] for run in stages]) for name in names}
    rest = median([100 * (1 - sum(run["stages"].values()) / run["seconds"]) for run in stages])
    return {**found, REST: rest}

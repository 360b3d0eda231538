"""What the recipes gain on digits and spirals, and whether a stage is kept where there is nothing to learn.

Run from the repository's root: ``python -m benchmarks.recipes``. Writes JSON to benchmarks/results.

1. Wrong labels, 200 verified samples: each recipe, scored on samples that nothing else has used.
2. Ten seeds of the digits with the verified labels permuted: which stages `auto` keeps.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.environment import environment
from verifix import correct
from verifix.cli.demo import digits, spiral
from verifix.cli.demo.training import percent_right, wrong_labels

OUT = Path("benchmarks/results/recipes.json")
Pair = tuple[Tensor, Tensor]


def of_digits(seed: int) -> tuple[nn.Module, Pair, Pair]:
    """Return a network that has memorised 30% wrong labels, verified digits, and unseen ones."""
    data = digits.load(seed)
    verified, unseen = ((data.inputs[i], data.labels[i]) for i in (data.verified, data.unseen))
    return digits.trained(data, seed), verified, unseen


def of_spirals(seed: int) -> tuple[nn.Module, Pair, Pair]:
    """Return a network that has memorised 25% wrong labels, verified points, and unseen ones; as in the demo."""
    x, true = spiral.spirals(spiral.TRAINING, 3 * seed)
    model = spiral.trained(x, wrong_labels(true, spiral.WRONG, 2, seed), seed)
    return model, spiral.spirals(spiral.VERIFIED, 3 * seed + 1), spiral.spirals(spiral.UNSEEN, 3 * seed + 2)


TASKS: dict[str, tuple[Callable[[int], tuple[nn.Module, Pair, Pair]], int, tuple[str, ...]]] = {
    "digits": (of_digits, 5, ("verifix", "auto", "refit", "finetune", "project,refit", "project,finetune")),
    "spirals": (of_spirals, 3, ("verifix", "auto")),
}
"""Each task: seed → network, verified and unseen samples; the number of seeds; the recipes."""


def gains(name: str) -> dict[str, Any]:
    """Score every recipe on every seed of a task."""
    load, seeds, recipes = TASKS[name]
    rows = []
    for seed in range(seeds):
        model, verified, unseen = load(seed)
        row: dict[str, Any] = {"seed": seed, "before": percent_right(model, *unseen), "recipes": {}}
        for recipe in recipes:
            start = time.perf_counter()
            correction = correct(model, verified, recipe=recipe, seed=seed, progress=False)
            row["recipes"][recipe] = {
                "after": percent_right(correction.model, *unseen),
                "strengths": correction.strengths,
                "seconds": round(time.perf_counter() - start, 2),
            }
        rows.append(row)
    mean = {recipe: sum(row["recipes"][recipe]["after"] for row in rows) / seeds for recipe in recipes}
    worst = min(row["recipes"]["auto"]["after"] - row["recipes"]["verifix"]["after"] for row in rows)
    mean["before"] = sum(row["before"] for row in rows) / seeds
    return {"mean": mean, "worst_auto_against_verifix": worst, "seeds": rows}


def permuted(seeds: int = 10) -> dict[str, Any]:
    """Correct with permuted labels, which mean nothing."""
    rows = []
    for seed in range(seeds):
        model, (inputs, labels), _ = of_digits(seed)
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        strengths = correct(model, (inputs, labels[order]), seed=seed, progress=False).strengths
        rows.append({"seed": seed, "kept": [stage for stage, strength in strengths.items() if strength is not None]})
    return {"seeds": seeds, "nothing_kept": sum(not row["kept"] for row in rows), "runs": rows}


def main() -> None:
    """Measure both and write what came out."""
    record: dict[str, Any] = {name: gains(name) for name in TASKS}
    record["permuted_labels"] = permuted()
    OUT.write_text(json.dumps(record | environment(), indent=2) + "\n", encoding="utf-8")
    summary = {
        name: {key: found[key] for key in found if key not in ("seeds", "runs")} for name, found in record.items()
    }
    sys.stdout.write(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""What trusted samples are worth when nothing was verified, on handwritten digits with 30% wrong labels.

Run from the repository's root: ``python -m benchmarks.trusted_digits``. Writes JSON to benchmarks/results.

For each of five seeds the network of the demo, which has memorised its labels, picks 200 of its own 1,000 training
samples by each method of `verifix.trust`. Counted are how many of those labels are right, and the accuracy on 597
unseen digits after a correction with the strength chosen on these samples, and with strengths that are given. Beside
them stand 200 training samples at random with their given labels, and 200 verified ones; and the share of right labels
that the same methods reach with a network stopped after 5 of its 60 epochs, early enough not to have memorised.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.environment import environment
from verifix import correct, trust
from verifix.cli.demo import digits
from verifix.cli.demo.training import mlp, percent_right, train
from verifix.options import TRUST_METHODS

OUT = Path("benchmarks/results/trusted_digits.json")
COUNT, STRENGTHS = 200, ("auto", 100.0, 1000.0, 10000.0)


def stopped_early(data: digits.Digits, seed: int) -> nn.Module:
    """Train the network of the demo for 5 epochs."""
    model, inputs = mlp((64, 256, 256, 10), seed, norm=True), data.inputs[data.training]
    return train(model, inputs, data.given, epochs=5, rate=0.01, batch=50, seed=seed)


def rows_of(seed: int) -> list[dict[str, Any]]:
    """Measure one seed: one row per way to come by 200 samples."""
    data = digits.load(seed)
    model, early = digits.trained(data, seed), stopped_early(data, seed)
    inputs, right = data.inputs[data.training], data.given == data.labels[data.training]
    sources: dict[str, tuple[Any, str, dict[str, float]]] = {}
    for method in TRUST_METHODS:
        picks = [trust(m, (inputs, data.given), method=method, count=COUNT, progress=False) for m in (model, early)]
        pure, pure_early = (_percent(right[pick.indices]) for pick in picks)
        sources[method] = picks[0].source, "trusted", {"pure": pure, "pure_early": pure_early}
    some = inputs[:COUNT], data.given[:COUNT]
    sources["random"] = some, "trusted", {"pure": _percent(right[:COUNT])}
    sources["verified"] = (data.inputs[data.verified], data.labels[data.verified]), "unseen", {"pure": 100.0}
    unseen = data.inputs[data.unseen], data.labels[data.unseen]
    return [
        {"seed": seed, "samples": name, **about, "before": percent_right(model, *unseen)}
        | {f"after_{alpha}": _after(model, source, origin, alpha, unseen) for alpha in STRENGTHS}
        for name, (source, origin, about) in sources.items()
    ]


def _after(model: nn.Module, source: Any, origin: Any, alpha: Any, unseen: Any) -> float:
    return percent_right(
        correct(model, source, verified_from=origin, alpha=alpha, recipe="verifix", progress=False).model, *unseen
    )


def _percent(right: torch.Tensor) -> float:
    return 100 * float(right.double().mean())


def main() -> None:
    """Measure all seeds and write what came out."""
    rows = [row for seed in range(5) for row in rows_of(seed)]
    means = {}
    for name in dict.fromkeys(row["samples"] for row in rows):
        same = [row for row in rows if row["samples"] == name]
        keys = [key for key in same[0] if key not in ("seed", "samples")]
        means[name] = {key: sum(row[key] for row in same) / len(same) for key in keys}
    record = {"mean": means, "rows": rows, **environment()}
    OUT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(means, indent=2) + "\n")


if __name__ == "__main__":
    main()

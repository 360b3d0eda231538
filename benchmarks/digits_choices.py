"""Whether the choice of a strength does harm, and what its scores say about new data, on handwritten digits.

Run from the repository's root: ``python -m benchmarks.digits_choices``. Writes JSON to benchmarks/results.

1. With the verified labels permuted there is nothing to learn, so "no change" is right. Counted for the loss that
   verifix uses (cross-entropy at each candidate's best temperature) and for plain cross-entropy.
2. With verified samples from the training set, the cross-fitted gain is compared with the gain on unseen samples.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.environment import environment
from verifix import Correction, correct
from verifix.cli.demo import digits
from verifix.cli.demo.training import percent_right
from verifix.losses import Score, cross_entropy, tempered_cross_entropy

OUT = Path("benchmarks/results/digits_choices.json")
LOSSES: dict[str, Score] = {"tempered": tempered_cross_entropy, "plain": cross_entropy}


def permuted(seeds: int = 10, times: int = 10) -> dict[str, int]:
    """Count, per loss, how often a strength wins although the verified labels mean nothing."""
    accepted = dict.fromkeys(LOSSES, 0)
    for seed in range(seeds):
        data = digits.load(seed)
        model = digits.trained(data, seed)
        inputs, labels = data.inputs[data.verified], data.labels[data.verified]
        for i in range(times):
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(100 * seed + i))
            for name, loss in LOSSES.items():
                correction = correct(
                    model, (inputs, labels[order]), recipe="verifix", loss=loss, seed=seed, progress=False
                )
                accepted[name] += correction.alpha is not None
    return {"runs": seeds * times, **accepted}


def sources(seeds: int = 5) -> dict[str, list[dict[str, Any]]]:
    """Compare the cross-fitted gain with the gain on unseen samples, per source of the verified samples."""
    rows: dict[str, list[dict[str, Any]]] = {"unseen": [], "training": []}
    for seed in range(seeds):
        data = digits.load(seed)
        model = digits.trained(data, seed)
        for source, chosen in (("unseen", data.verified), ("training", data.training[:200])):
            verified = data.inputs[chosen], data.labels[chosen]
            rows[source].append(
                {"seed": seed, **_gains(data, model, correct(model, verified, recipe="verifix", progress=False))}
            )
    return rows


def _gains(data: digits.Digits, model: nn.Module, correction: Correction) -> dict[str, Any]:
    unseen: tuple[Tensor, Tensor] = data.inputs[data.unseen], data.labels[data.unseen]
    score = {point.strength: 100 * point.score for point in correction.curve}
    return {
        "alpha": correction.alpha,
        "cross_fitted_gain": score[correction.alpha] - score[None],
        "gain": percent_right(correction.model, *unseen) - percent_right(model, *unseen),
    }


def main() -> None:
    """Measure both and write what came out."""
    rows = sources()
    means = {
        f"{source}_{key}": sum(row[key] for row in found) / len(found)
        for source, found in rows.items()
        for key in ("cross_fitted_gain", "gain")
    }
    record = {"permuted_labels_accepted": permuted(), "mean": means, "sources": rows, **environment()}
    OUT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps({key: record[key] for key in ("permuted_labels_accepted", "mean")}, indent=2) + "\n")


if __name__ == "__main__":
    main()

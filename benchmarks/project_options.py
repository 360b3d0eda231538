"""What the options of the projection do for handwritten digits, and what centring costs in digits of the arithmetic.

Run from the repository's root: ``python -m benchmarks.project_options``. Writes JSON to benchmarks/results.

1. Accuracy on the 597 unseen digits, per seed: as trained on 30% wrong labels, corrected from 200 verified digits, and
   the same with each option. The suspects are the training samples whose label is wrong, which the network has
   memorised: the best suspicion there can be. "at_best" is the best of 21 strengths by the unseen digits themselves,
   which nobody can choose; it tells a poor choice of α from a poor projection.
2. Relative error of the scatter for rows whose mean is far from zero, as it is accumulated and as XᵀX − n μ μᵀ.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.environment import environment
from verifix import correct
from verifix.demo import digits
from verifix.demo.training import mlp, percent_right, train
from verifix.moments import Moments, merge

OUT = Path("benchmarks/results/project_options.json")
STRENGTHS = [10.0 ** (k / 4) for k in range(4, 25)]
CONTRASTS = (1e-4, 1e-3, 1e-2, 0.1, 1.0)


def networks(data: digits.Digits, seed: int) -> dict[str, nn.Module]:
    """Train the network of the demonstration, and the same without batch normalisation."""
    plain = mlp((64, 256, 256, 10), seed, norm=False)
    settings: dict[str, Any] = {"epochs": 60, "rate": 0.003, "batch": 50, "seed": seed}
    return {
        "batch normalisation": digits.trained(data, seed),
        "plain": train(plain, data.inputs[data.training], data.given, **settings),
    }


def options_of(suspects: Tensor) -> dict[str, dict[str, Any]]:
    """Name the options to compare."""
    contrasts: dict[str, dict[str, Any]] = {
        f"contrast {contrast:g}": {"suspects": suspects, "contrast": contrast} for contrast in CONTRASTS
    }
    both = {"affine": True, "suspects": suspects, "contrast": 1e-3}
    return {"none": {}, "affine": {"affine": True}, **contrasts, "affine, contrast 0.001": both}


def accuracies(seeds: int = 5) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Correct each network with each option; see the module."""
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for seed in range(seeds):
        data = digits.load(seed)
        verified = data.inputs[data.verified], data.labels[data.verified]
        unseen = data.inputs[data.unseen], data.labels[data.unseen]
        wrong = data.inputs[data.training[data.given != data.labels[data.training]]]
        for name, model in networks(data, seed).items():
            before = percent_right(model, *unseen)
            for option, settings in options_of(wrong).items():
                chosen = correct(model, verified, recipe="verifix", seed=seed, progress=False, **settings)
                fixed = [correct(model, verified, alpha=a, seed=seed, progress=False, **settings) for a in STRENGTHS]
                row = {"seed": seed, "before": before, "alpha": chosen.alpha}
                row["after"] = percent_right(chosen.model, *unseen)
                row["at_best"] = max(percent_right(c.model, *unseen) for c in fixed)
                rows.setdefault(name, {}).setdefault(option, []).append(row)
    return rows


def means(rows: dict[str, dict[str, list[dict[str, Any]]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Average over seeds, and count how often a strength won."""
    return {
        network: {
            option: {
                **{key: sum(row[key] for row in found) / len(found) for key in ("before", "after", "at_best")},
                "corrected": sum(row["alpha"] is not None for row in found),
            }
            for option, found in options.items()
        }
        for network, options in rows.items()
    }


def errors_of_the_scatter() -> list[dict[str, float]]:
    """Compare the scatter of 2,000 rows with that in extended precision; see the module."""
    generator = torch.Generator().manual_seed(0)
    results = []
    for ratio in (1e2, 1e4, 1e6):
        spread = torch.randn(1, 2000, 30, dtype=torch.float64, generator=generator)
        rows = spread + ratio * torch.randn(1, 1, 30, dtype=torch.float64, generator=generator)
        wide = rows[0].numpy().astype(np.longdouble)
        wide = wide - wide.mean(axis=0)
        exact = torch.from_numpy((wide.T @ wide).astype(np.float64))
        moments = merge(Moments(part) for part in rows.split(50, dim=1))
        difference = rows[0].T @ rows[0] - 2000 * torch.outer(rows[0].mean(0), rows[0].mean(0))
        size = exact.norm()
        results.append(
            {
                "mean_over_spread": ratio,
                "accumulated": float((moments.scatter[0] - exact).norm() / size),
                "as_a_difference": float((difference - exact).norm() / size),
            }
        )
    return results


def main() -> None:
    """Measure both and write what came out."""
    rows = accuracies()
    record = {"mean": means(rows), "scatter": errors_of_the_scatter(), "seeds": rows, **environment()}
    OUT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps({key: record[key] for key in ("mean", "scatter")}, indent=2) + "\n")


if __name__ == "__main__":
    main()

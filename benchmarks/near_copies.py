"""How often the check for undeclared near-copies speaks where there are none, and where there are.

Run from the repository's root: ``python -m benchmarks.near_copies``. Writes JSON to benchmarks/results. Independent
data: the data sets that come with scikit-learn, exact copies left out, each drawn 100 times in several sizes; Gaussian
points in 1 to 128 dimensions; texts of 12 tokens and binary vectors; the logits that the networks of
`benchmarks.proof_networks` give to new points. Near-copies: Gaussian points, each drawn several times with a jitter of
0.01, 0.05 or 0.2 standard deviations. Folds are drawn at random.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.environment import environment
from benchmarks.proof_networks import NETWORKS, network
from verifix.evaluation.near_copies import LEAST, SHARE, near_copies

OUT = Path("benchmarks/results/near_copies.json")
RUNS, FOLDS, CLASSES = 100, 5, 4
WIDTHS, SIZES = (1, 2, 4, 8, 32, 128), (100, 400)
REAL = {"digits": (100, 200, 500), "wine": (60, 178), "breast_cancer": (100, 300, 569), "iris": (60, 147)}
COPIES, JITTERS = ((100, 2), (40, 5), (20, 10)), (0.01, 0.05, 0.2)

Array = np.ndarray[Any, Any]
Make = Callable[[np.random.Generator], tuple[Array, Array]]


def measured(make: Make, runs: int = RUNS) -> dict[str, float]:
    """Return in how many percent of the sets the check speaks, and the percent of samples that it is about."""
    spoken, share = 0, []
    for run in range(runs):
        generator = np.random.default_rng(run)
        x, y = make(generator)
        folds = generator.permutation(len(y)) % FOLDS
        found = len(near_copies(torch.from_numpy(x), y, np.arange(len(y)), folds))
        spoken += found >= max(LEAST, SHARE * len(y))
        share.append(100 * found / len(y))
    return {"runs": runs, "spoken": 100 * spoken / runs, "samples": float(np.mean(share))}


def real(name: str, n: int) -> Make:
    """Draw from a data set of scikit-learn, in which no input stands twice."""
    import sklearn.datasets

    x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    once = np.unique(x, axis=0, return_index=True)[1]

    def make(generator: np.random.Generator) -> tuple[Array, Array]:
        rows = generator.permutation(once)[:n]
        return x[rows].astype(float), y[rows]

    return make


def gaussian(width: int, n: int, copies: int = 1, jitter: float = 0.0) -> Make:
    """Draw points, and each several times with a jitter."""

    def make(generator: np.random.Generator) -> tuple[Array, Array]:
        x = np.repeat(generator.normal(size=(n, width)), copies, 0)
        return x + jitter * generator.normal(size=x.shape), np.repeat(generator.integers(0, CLASSES, n), copies)

    return make


def discrete(values: int, length: int, n: int) -> Make:
    """Draw vectors of whole numbers, each once."""

    def make(generator: np.random.Generator) -> tuple[Array, Array]:
        x = np.unique(generator.integers(0, values, (n, length)), axis=0).astype(float)
        return x, generator.integers(0, 2, len(x))

    return make


def logits(n: int) -> Make:
    """Draw what a small network says to new points."""

    def make(generator: np.random.Generator) -> tuple[Array, Array]:
        model, draw = network(int(generator.integers(NETWORKS)))
        x, y = draw(n)
        with torch.no_grad():
            return model(x).double().numpy(), y.numpy()

    return make


def main() -> None:
    """Measure everything and write what came out."""
    torch.set_num_threads(1)
    rows = [{"data": name, "size": n} | measured(real(name, n)) for name, sizes in REAL.items() for n in sizes]
    rows += [{"data": f"gaussian, {w}-d", "size": n} | measured(gaussian(w, n)) for w in WIDTHS for n in SIZES]
    rows += [{"data": "12 tokens of 20", "size": 200} | measured(discrete(20, 12, 200))]
    rows += [{"data": "12 bits", "size": 200} | measured(discrete(2, 12, 200))]
    rows += [{"data": "logits of small networks", "size": n} | measured(logits(n)) for n in SIZES]
    copies = [
        {"width": w, "inputs": n, "copies": k, "jitter": jitter} | measured(gaussian(w, n, k, jitter), 50)
        for w in (2, 4, 8, 32)
        for n, k in COPIES
        for jitter in JITTERS
    ]
    record = {"independent": rows, "near_copies": copies, **environment()}
    OUT.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    for row in (*rows, *copies):
        sys.stdout.write(f"{row}\n")


if __name__ == "__main__":
    main()

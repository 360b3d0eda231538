"""Whether a correction from only 100 verified images does harm: 20 random subsets, on the real network of ../shared.

Run from the repository's root: ``python -m benchmarks.cifar10_subsets``. Each subset of the 1,000 verified images is
corrected with the default recipe and scored on the 4,000 images of the pool, which nothing else uses. Writes JSON to
benchmarks/results after every subset, and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.environment import environment
from verifix import correct
from verifix.borrow import borrowed
from verifix.io.checkpoints import read_checkpoint
from verifix.io.datasets import open_data
from verifix.io.models import build_model
from verifix.options import DataOptions
from verifix.samples import Samples, read_samples
from verifix.scoring import correct_or_not, predict

SUBSETS, SIZE = 20, 100


IMAGES = DataOptions(mean="0.491,0.482,0.447", std="0.247,0.243,0.262")


def main() -> None:
    """Correct and score every subset that has not been scored yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data and networks")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cifar10_subsets.json"))
    arguments = parser.parse_args()
    model = build_model(f"py:{arguments.shared / 'networks/vgg11_bn_cifar.py'}:build", None)
    read_checkpoint(arguments.shared / "networks/vgg11_bn_cifar10_sym25.safetensors").load_into(model)
    verified = read_samples(open_data(arguments.shared / "data/cifar10_verified.parquet", IMAGES))
    pool = read_samples(open_data(arguments.shared / "data/cifar10_pool.parquet", IMAGES))
    images = torch.cat([batch.inputs for batch in verified.batches(range(len(verified)), 250)])
    before = percent(model.eval(), pool)
    earlier = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    rows = list(earlier.get("subsets", []))
    for seed in range(len(rows), SUBSETS):
        rows.append(run(model, pool, images, verified.labels, seed, before))
        worst = min(row["gain"] for row in rows)
        summary = {"harmed": sum(row["gain"] < -0.5 for row in rows), "worst": worst, "subsets": len(rows)}
        summary["mean_gain"] = sum(row["gain"] for row in rows) / len(rows)
        record = {"before": before, **summary, **environment(), "subsets": rows}
        arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        sys.stdout.write(json.dumps(rows[-1] | {"layers": None}) + "\n")
        sys.stdout.flush()


def run(model: nn.Module, pool: Samples, images: Tensor, labels: Tensor, seed: int, before: float) -> dict[str, Any]:
    """Correct with one subset, drawn by seed, and score."""
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:SIZE]
    start = time.perf_counter()
    correction = correct(model, (images[chosen], labels[chosen]), seed=seed, progress=False)
    seconds = time.perf_counter() - start
    gain = percent(correction.model, pool) - before
    return {"seed": seed, "gain": gain, "strengths": correction.strengths, "seconds": round(seconds, 1)}


def percent(model: nn.Module, samples: Samples) -> float:
    """Return the accuracy in percent."""
    with borrowed(model):
        logits = predict(model, samples, range(len(samples)), 250, torch.device("cpu"))
    return 100 * float(correct_or_not(logits, samples.labels).mean())


if __name__ == "__main__":
    main()

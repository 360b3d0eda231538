"""Whether a correction from only 100 verified images does harm: 20 random subsets, on the real network of ../shared.

Run from the repository's root: ``python -m benchmarks.cifar10_subsets``. Each subset of the 1,000 verified images is
corrected and scored on the 4,000 images of the pool, which nothing else uses. The recipe is the default one without
fine-tuning, which alone would take four times as long as all the rest; ``--recipe auto`` has it. Writes JSON to
benchmarks/results after every subset, and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.environment import environment
from verifix import correct
from verifix.io.checkpoints.read import read_checkpoint
from verifix.io.data.open import open_data
from verifix.io.models import build_model
from verifix.io.options import DataOptions
from verifix.losses import correct_or_not
from verifix.model.borrow import borrowed
from verifix.model.predict import predict
from verifix.model.samples import Samples, read_samples

SUBSETS, SIZE = 20, 100


IMAGES = DataOptions(mean=(0.491, 0.482, 0.447), std=(0.247, 0.243, 0.262))


RECIPE = "project,layerwise,recalibrate,refit,linear_probe"


def main() -> None:
    """Correct and score every subset that has not been scored yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data and networks")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cifar10_subsets.json"))
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--processes", type=int, default=2, help="several have one thread each")
    arguments = parser.parse_args()
    earlier = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    rows = {row["seed"]: row for row in earlier.get("subsets", []) if earlier.get("recipe") == arguments.recipe}
    missing = [seed for seed in range(SUBSETS) if seed not in rows]
    setup = (arguments.shared, arguments.recipe, arguments.processes > 1)
    with ProcessPoolExecutor(arguments.processes, get_context("spawn"), _set_up, setup) as pool:
        for row in pool.map(run, missing):
            rows[row["seed"]] = row
            gains = [found["gain"] for found in rows.values()]
            summary = {"harmed": sum(gain < -0.5 for gain in gains), "worst": min(gains)}
            record = {
                "recipe": arguments.recipe,
                "before": row["before"],
                **summary,
                "mean_gain": sum(gains) / len(gains),
                **environment(),
                "subsets": [rows[seed] for seed in sorted(rows)],
            }
            arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
            sys.stdout.write(json.dumps(row) + "\n")
            sys.stdout.flush()


@dataclass(frozen=True)
class _Setting:
    """What every subset needs."""

    recipe: str
    model: nn.Module
    images: Tensor
    labels: Tensor
    pool: Samples
    before: float


_SETTINGS: list[_Setting] = []


def _set_up(shared: Path, recipe: str, one_thread: bool) -> None:
    """Read network and images once per process."""
    if one_thread:
        torch.set_num_threads(1)
    model = build_model(f"py:{shared / 'networks/vgg11_bn_cifar.py'}:build", None)
    read_checkpoint(shared / "networks/vgg11_bn_cifar10_sym25.safetensors").load_into(model)
    verified = read_samples(open_data(shared / "data/cifar10_verified.parquet", IMAGES))
    pool = read_samples(open_data(shared / "data/cifar10_pool.parquet", IMAGES))
    images = torch.cat([batch.inputs for batch in verified.batches(range(len(verified)), 250)])
    before = percent(model.eval(), pool)
    _SETTINGS.append(_Setting(recipe, model, images, verified.labels, pool, before))


def run(seed: int) -> dict[str, Any]:
    """Correct with one subset, drawn by seed, and score."""
    (setting,) = _SETTINGS
    chosen = torch.randperm(len(setting.labels), generator=torch.Generator().manual_seed(seed))[:SIZE]
    subset = setting.images[chosen], setting.labels[chosen]
    start = time.perf_counter()
    correction = correct(setting.model, subset, recipe=setting.recipe, seed=seed, progress=False)
    seconds = round(time.perf_counter() - start, 1)
    after = percent(correction.model, setting.pool)
    scores = {"before": setting.before, "after": after, "gain": after - setting.before}
    return {"seed": seed, **scores, "strengths": correction.strengths, "seconds": seconds}


def percent(model: nn.Module, samples: Samples) -> float:
    """Return the accuracy in percent."""
    with borrowed(model):
        logits = predict(model, samples, range(len(samples)), 250, torch.device("cpu"))
    return 100 * float(correct_or_not(logits, samples.labels).mean())


if __name__ == "__main__":
    main()

"""Five strengths of the projection, beside the paper's way: unfolded rows, an SVD per layer, and P per strength.

Run from the repository's root on a quiet machine: ``python -m benchmarks.five_strengths``. Both ways correct the
network of the folder `shared`, each in a process of its own, which also gives their memory: the peak of the process
beyond what it held with the network and the images loaded. The paper's way draws up to 50,000 rows of each layer; only
layers with fewer can agree, and these are compared. Writes JSON to benchmarks/results.
"""

from __future__ import annotations

import argparse
import copy
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from benchmarks.environment import environment
from benchmarks.speed import CPU, vgg
from verifix.capture.collect import collect
from verifix.capture.interceptor import intercepting
from verifix.capture.layer import Layer, read_matrix, write_matrix
from verifix.model.borrow import borrowed
from verifix.model.samples import Samples, read_samples
from verifix.projection import importance, prepare

OUT = Path("benchmarks/results/five_strengths.json")
ALPHAS = (1e2, 1e3, 1e4, 1e5, 1e6)
CAP = 50_000
SIZE = 64


def papers_way(model: nn.Module, samples: Samples) -> tuple[list[nn.Module], list[str]]:
    """Return a corrected copy per strength, and the weights that saw all of their rows."""
    kept: dict[Layer, list[Tensor]] = {}
    seen: dict[Layer, int] = {}

    def keep(layer: Layer, rows: Tensor) -> None:
        seen[layer] = seen.get(layer, 0) + rows.shape[1]
        chance = CAP / (rows_per_sample[layer] * len(samples)) if rows_per_sample else 1.0
        drawn = rows if chance >= 1 else rows[:, torch.rand(rows.shape[1]) < chance]
        kept.setdefault(layer, []).append(drawn.clone())

    rows_per_sample: dict[Layer, int] = {}
    with borrowed(model), intercepting(model, keep) as census:
        census.begin(1)
        model(samples.alone(0).inputs)
        rows_per_sample.update(seen)
        kept.clear()
        for batch in samples.batches(range(len(samples)), SIZE):
            census.begin(len(batch.labels))
            model(batch.inputs)
        spectra = {layer: spectrum(torch.cat(kept.pop(layer), dim=1)) for layer in [*kept]}
        whole = [layer.parameter for layer, rows in rows_per_sample.items() if rows * len(samples) <= CAP]
        return [corrected(model, spectra, alpha) for alpha in ALPHAS], whole


def spectrum(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the right singular vectors and shares of the squared singular values of rows ``[groups, n, d]``."""
    _, singular, directions = torch.linalg.svd(rows, full_matrices=False)
    squares = singular.double().square()
    return directions, squares / squares.sum(dim=1, keepdim=True)


def corrected(model: nn.Module, spectra: dict[Layer, tuple[Tensor, Tensor]], alpha: float) -> nn.Module:
    """Return a copy of a model whose weights are multiplied with P."""
    model = copy.deepcopy(model)
    values = {name: parameter.data for name, parameter in model.named_parameters()}
    for layer, (directions, shares) in spectra.items():
        p = directions.mT @ (importance(shares, alpha).to(directions.dtype)[..., None] * directions)
        write_matrix(layer, values, read_matrix(layer, values.__getitem__) @ p.double())
    return model


def our_way(model: nn.Module, samples: Samples) -> list[dict[str, Tensor]]:
    """Return the corrected weights per strength."""
    with borrowed(model):
        found = collect(model, samples, [range(len(samples))], batch_size=SIZE, device=CPU)
        values = {name: parameter.data for name, parameter in model.named_parameters()}
        updates: list[dict[str, Tensor]] = [{} for _ in ALPHAS]
        for layer in found.layers:
            factors = prepare(read_matrix(layer, values.__getitem__), found.moments(layer, [0], {}))
            for alpha, update in zip(ALPHAS, updates, strict=True):
                update.update({name: values[name].clone() for name in layer.parameters if name not in update})
                write_matrix(layer, update, factors.project(alpha))
    return updates


def work(way: str, images: int, out: Path) -> None:
    """Correct in this process, and write the weights of the strength in the middle with what it took."""
    torch.manual_seed(0)
    model = vgg().eval()
    samples = read_samples((torch.randn(images, 3, 32, 32), torch.arange(images) % 10))
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    whole: list[str] = []
    if way == "paper":
        models, whole = papers_way(model, samples)
        results = [{name: p.data for name, p in each.named_parameters()} for each in models]
    else:
        results = our_way(model, samples)
    seconds = time.perf_counter() - start
    extra = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e9
    weights = {name: x.contiguous() for name, x in results[len(ALPHAS) // 2].items() if x.ndim > 1}
    save_file(weights, out, {"found": json.dumps({"seconds": seconds, "extra_gigabytes": extra, "whole": whole})})


def measured(way: str, images: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Run one way in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "weights.safetensors"
        command = [sys.executable, "-m", "benchmarks.five_strengths", "--images", str(images)]
        subprocess.run([*command, "--way", way, "--out", str(out)], check=True)
        content = out.read_bytes()
        head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        return json.loads(head["__metadata__"]["found"]), load_file(out)


def main() -> None:
    """Run both ways, and write their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--way", choices=("paper", "ours"), help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    if arguments.way:
        work(arguments.way, arguments.images, arguments.out)
        return
    (ours, weights), (paper, theirs) = (measured(way, arguments.images) for way in ("ours", "paper"))
    off = {name: float((weights[name] - theirs[name]).norm() / theirs[name].norm()) for name in paper["whole"]}
    found = {
        "images": arguments.images,
        "strengths": ALPHAS,
        "ours": ours,
        "paper": paper,
        "times_faster": paper["seconds"] / ours["seconds"],
        "of_its_memory": ours["extra_gigabytes"] / paper["extra_gigabytes"],
        "largest_difference": max(off.values()),
    }
    arguments.out.write_text(json.dumps(found | environment(), indent=1) + "\n", encoding="utf-8")
    print({name: value for name, value in found.items() if name not in ("ours", "paper")})


if __name__ == "__main__":
    main()

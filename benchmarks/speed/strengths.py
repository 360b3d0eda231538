"""Five strengths of the projection, beside the paper's way: unfolded rows, an SVD per layer, and P per strength.

Both ways correct the same network, each in a process of its own, which also gives their memory: the peak of the process
beyond what it held with the network and the samples loaded. The paper's way draws up to 50,000 rows of each layer; only
layers with fewer can agree, and these are compared. It is leaner than the authors' own code, which multiplies
P = (U √Λ) (U √Λ)ᵀ after a product with the diagonal matrix √Λ of full size, where one product is made here.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import unfold

from benchmarks.speed.problems import CPU, SIZE, computing, forward, problem
from benchmarks.speed.process import alone, peak
from benchmarks.speed.rounds import Case, Found, Ready, timed
from verifix.capture.collect import collect
from verifix.capture.layer import read_matrix, write_matrix
from verifix.model.samples import Samples
from verifix.projection import importance, prepare

ALPHAS = (1e2, 1e3, 1e4, 1e5, 1e6)
CAP = 50_000
OURS, PAPERS = "verifix", "paper's way"

Weights = dict[str, Tensor]


def cases(*, quick: bool) -> list[Case]:
    """Return the one comparison; a quick run has fewer images."""
    return [case_of("vgg11_bn", 50, ours=5, papers=30) if quick else case_of("vgg11_bn", 1000, ours=30, papers=300)]


def case_of(name: str, count: int, ours: float = 5, papers: float = 5) -> Case:
    """Return the comparison for one network; the guesses are of the seconds of both ways."""
    title = {"vgg11_bn": "VGG11-BN"}.get(name, name)
    return Case(f"{title}, {count:,} samples", {"forward": 3, OURS: ours, PAPERS: papers}, partial(_ready, name, count))


def _ready(name: str, count: int) -> Ready:
    folder = tempfile.TemporaryDirectory()
    case = problem(name, count)
    ways = {way: partial(alone, __name__, way, name, count, folder.name) for way in (OURS, PAPERS)}
    run = {"forward": partial(forward, case), **ways}
    return Ready(run, {"samples": count, "alphas": ALPHAS, "cap": CAP}, partial(compared, folder))


def compared(folder: tempfile.TemporaryDirectory[str]) -> Found:
    """Return the largest difference in a layer for each strength, relative to the layer, and how many are compared."""
    with folder as path:
        ours, papers = (load_file(Path(path) / f"{way}.safetensors") for way in (OURS, PAPERS))
    names = papers.keys() & ours.keys()
    off = {name: float((ours[name] - papers[name]).norm() / papers[name].norm()) for name in names}
    of_each = [max(off[name] for name in names if name.startswith(f"{alpha:g}/")) for alpha in ALPHAS]
    return {"differences": of_each, "compared": len(names) // len(ALPHAS)}


def papers_way(model: nn.Module, samples: Samples) -> tuple[list[nn.Module], set[str]]:
    """Return a corrected copy per strength, and the weights that saw all of their rows."""
    kept: dict[str, list[Tensor]] = {}
    seen: Counter[str] = Counter()

    def keep(name: str, rows: Tensor, share: int) -> None:
        seen[name] += len(rows)
        chance = CAP * share / (len(rows) * len(samples))
        kept.setdefault(name, []).append(rows if chance >= 1 else rows[torch.rand(len(rows)) < chance])

    with ExitStack() as hooks:
        share = [0]
        for name, module in layers_of(model):
            hook = module.register_forward_pre_hook(
                lambda module, inputs, name=name: keep(f"{name}.weight", rows_of(module, inputs[0]), share[0])
            )
            hooks.callback(hook.remove)
        for batch in samples.batches(range(len(samples)), SIZE):
            share[0] = len(batch.labels)
            model(batch.inputs)
    spectra = {name: spectrum(torch.cat(kept.pop(name))) for name in [*kept]}
    return [corrected(model, spectra, alpha) for alpha in ALPHAS], {name for name in seen if seen[name] <= CAP}


def layers_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return convolutions and linear layers by name."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


def rows_of(module: nn.Module, x: Tensor) -> Tensor:
    """Return what a layer multiplies as rows ``[n, d]``: a copy."""
    if isinstance(module, nn.Conv2d):
        if module.groups > 1 or isinstance(module.padding, str):
            raise ValueError(f"{module} has groups, or padding in words: give the benchmark a network without")
        patches = unfold(x, module.kernel_size, module.dilation, module.padding, module.stride)
        return patches.mT.reshape(-1, patches.shape[1])
    return x.flatten(0, -2).clone()


def spectrum(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the right singular vectors of rows ``[n, d]``, and the shares of their squared singular values."""
    _, singular, directions = torch.linalg.svd(rows, full_matrices=False)
    squares = singular.double().square()
    return directions, squares / squares.sum()


def corrected(model: nn.Module, spectra: dict[str, tuple[Tensor, Tensor]], alpha: float) -> nn.Module:
    """Return a copy of a model whose weights are multiplied with P."""
    model = copy.deepcopy(model)
    for name, (directions, shares) in spectra.items():
        weight = model.get_parameter(name)
        p = directions.mT @ (importance(shares, alpha).to(directions.dtype)[:, None] * directions)
        weight.data = (weight.data.flatten(1) @ p).view_as(weight)
    return model


def our_way(model: nn.Module, samples: Samples) -> list[Weights]:
    """Return the corrected weights per strength."""
    found = collect(model, samples, [range(len(samples))], batch_size=SIZE, device=CPU)
    values = {name: parameter.data for name, parameter in model.named_parameters()}
    updates: list[Weights] = [{} for _ in ALPHAS]
    for layer in found.layers:
        factors = prepare(read_matrix(layer, values.__getitem__), found.moments(layer, [0], {}))
        for alpha, update in zip(ALPHAS, updates, strict=True):
            update.update({name: values[name].clone() for name in layer.parameters if name not in update})
            write_matrix(layer, update, factors.project(alpha))
    return updates


def work(way: str, name: str, count: int, folder: Path) -> Found:
    """Correct in this process, write the weights that can be compared, and return what it took."""
    case = problem(name, count)
    samples = case.samples
    results: list[Weights] = []
    whole: set[str] = set()

    def run() -> None:
        if way == PAPERS:
            models, names = papers_way(case.model, samples)
            whole.update(names)
            results.extend({name: p.data for name, p in each.named_parameters()} for each in models)
        else:
            results.extend(our_way(case.model, samples))
            whole.update(*results)

    with computing(case):
        before = peak(CPU, reset=True)
        found = timed(run)
        extra = peak(CPU) - before
    weights = {
        f"{alpha:g}/{name}": x.contiguous()
        for alpha, result in zip(ALPHAS, results, strict=True)
        for name, x in result.items()
        if name in whole and x.ndim > 1
    }
    save_file(weights, folder / f"{way}.safetensors")
    return found | {"extra_bytes": extra}


if __name__ == "__main__":
    way, name, count, folder = sys.argv[1:]
    print(json.dumps(work(way, name, int(count), Path(folder))))

"""The pass that collects moments beside a plain forward pass, and beside the least that it can take.

The floor is the forward pass and the multiplications that XᵀX needs, at the rate of this machine's own product of large
matrices.
"""

from __future__ import annotations

from collections import Counter
from functools import partial

import torch
from torch import nn

from benchmarks.speed.problems import CPU, SIZE, Problem, capture, computing, forward, problem
from benchmarks.speed.rounds import Case, Found, Ready, timed
from verifix.capture.interceptor import intercepting
from verifix.capture.kinds.lags import Patches, boxes
from verifix.capture.layer import Layer
from verifix.capture.sharing import Layers
from verifix.model.borrow import borrowed
from verifix.model.samples import Samples
from verifix.model.work import multiplications as forward_multiplications

SIDE = 2048
"""Side of the matrices whose product tells the rate of the machine."""

NETWORKS = {
    "VGG11-BN, 32 px": ("vgg11_bn", 1000, 3.0, 8.0),
    "ResNet18, 224 px": ("resnet18", 100, 3.5, 11.0),
    "ViT-B/16, 224 px": ("vit_b_16", 50, 12.0, 25.0),
}
"""By title: the network, how many images, and roughly the seconds of both passes."""


def cases(*, quick: bool) -> list[Case]:
    """Return the networks; a fifth of the images for a quick run."""
    part = 5 if quick else 1
    return [
        case_of(title, name, count // part, plain / part, captured / part)
        for title, (name, count, plain, captured) in NETWORKS.items()
    ]


def case_of(title: str, name: str, count: int, plain: float = 1.0, captured: float = 2.0) -> Case:
    """Return the comparison of both passes for one network."""
    guess = {"forward": plain, "capture": captured, "product": 0.3}
    return Case(f"{title}, {count:,} images", guess, partial(_ready, name, count))


def _ready(name: str, count: int) -> Ready:
    case = problem(name, count)
    samples = case.samples
    with computing(case) as threads:
        own = sum(forward_multiplications(case.model, samples, range(2), CPU)) / 2 * count
        squares = multiplications(case.model, samples)
    about = {"images": count, "threads": threads, "forward_multiplications": own, "moments_multiplications": squares}
    run = {"forward": forward, "capture": capture, "product": _product}
    return Ready({key: partial(one, case) for key, one in run.items()}, about)


def _product(case: Problem) -> Found:
    """Time a product of large matrices in float32: what the machine can do."""
    a = torch.rand(SIDE, SIDE)
    with computing(case):
        return min((timed(lambda: a @ a) for _ in range(5)), key=lambda found: found["seconds"])


def multiplications(model: nn.Module, samples: Samples) -> float:
    """Return the multiplications that the moments of all samples take: half of XᵀX, or products per lag, or none.

    Parameters
    ----------
    model
        The network.
    samples
        Samples, of which the first eight are run.

    Returns
    -------
    float
        Their number.
    """
    few, count = min(8, len(samples)), len(samples)
    widths: dict[Layer, tuple[int, int]] = {}
    seen: Counter[Layer] = Counter()
    total = 0.0

    class Counting:
        """Counts in place of multiplying."""

        def rows(self, layers: Layers, rows: torch.Tensor) -> None:
            seen[layers[0]] += rows.shape[1]
            widths[layers[0]] = rows.shape[0], rows.shape[2]

        def patches(self, _: Layers, patches: Patches) -> bool:
            nonlocal total
            enough = count * patches.geometry.positions >= patches.shape[2]
            if enough and patches.worthwhile:
                pixels = count * sum(box.pixels for box in boxes(patches.geometry))
                total += patches.groups * pixels * (patches.x.shape[1] // patches.groups) ** 2
            return enough and patches.worthwhile

        def waits(self, _: Layer) -> bool:
            return False

        def called(self, _: Layer) -> None:
            """Layers are counted when their rows come."""

        def shares(self, _: Layer) -> bool:
            return True

    batch = next(samples.batches(range(few), min(few, SIZE)))
    with borrowed(model), intercepting(model, Counting(), masked=False) as census:
        census.begin(few)
        model(batch.inputs)
        census.finish()
    for layer, (groups, width) in widths.items():
        rows = seen[layer] * count / few
        total += groups * rows * width * (width + 1) / 2 if rows >= width else 0  # fewer are kept as they are
    return total

"""How much memory a correction takes besides the model and one batch, and how long, on the CPU or a GPU.

Each network runs in a process of its own: a forward pass of one batch beside a copy of the model first, then a
correction with a given strength. The peak of the second beyond that of the first is compared with what
`verifix.inspect` foresees. Where torch finds a GPU, the model is put there, and its memory is counted. Weights are
random: neither memory nor time depends on them.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

import verifix
from benchmarks.coverage_models import declare_missing_operators
from benchmarks.speed import rounds
from benchmarks.speed.problems import of_torchvision
from benchmarks.speed.process import alone, peak
from verifix.capture.memory_plan import Limits
from verifix.model.run import to_device
from verifix.options import MemoryOptions

ALPHA = 100.0
TOKENS = 64


def bert() -> nn.Module:
    """Return a text classifier of 110 million parameters."""
    library = declare_missing_operators()
    from transformers import BertConfig, BertForSequenceClassification

    del library
    model: nn.Module = BertForSequenceClassification(BertConfig())
    return model


@dataclass(frozen=True)
class Network:
    """What is corrected, from how many samples, their shape, the batch, roughly the seconds, and the limit given."""

    build: Callable[[], nn.Module]
    samples: int
    shape: tuple[int, ...]
    batch: int
    guess: float
    memory: str | None = None


QUICK = "ResNet50, 64 px, 200 images"
NETWORKS = {
    **{
        f"ResNet50, 64 px, {count} images{', 1.5 GB' * limited}": Network(
            partial(of_torchvision, "resnet50"), count, (3, 64, 64), 50, count / 5, "1.5GB" if limited else None
        )
        for count in (200, 1000)
        for limited in (False, True)
    },
    "VGG16, 224 px, 20 images": Network(partial(of_torchvision, "vgg16"), 20, (3, 224, 224), 4, 300),
    "BERT, 64 tokens, 50 texts": Network(bert, 50, (TOKENS,), 10, 300),
}
"""By title."""


def inputs_of(case: Network, count: int) -> Any:
    """Return random images, or texts without padding."""
    if len(case.shape) > 1:
        return torch.randn(count, *case.shape)
    ids = torch.randint(1, 1000, (count, *case.shape))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def measure(case: Network) -> dict[str, Any]:
    """Run one case in this process."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    model, twin = case.build().eval().to(device), case.build().eval().to(device)
    inputs, labels = inputs_of(case, case.samples), torch.arange(case.samples) % 2
    batch = to_device(tree_map(lambda x: x[: case.batch], inputs), device)
    begun = time.perf_counter()
    with torch.no_grad():
        twin(**batch) if isinstance(batch, dict) else twin(batch)
    forward = time.perf_counter() - begun
    del twin
    before = peak(device)
    limits = Limits(MemoryOptions(memory=case.memory).memory_bytes)
    plan = verifix.inspect(model, batch).plan(case.samples, 1, limits)
    peak(device, reset=True)
    begun = time.perf_counter()
    settings: dict[str, Any] = {"memory": case.memory, "batch_size": case.batch, "check_labels": False}
    correction = verifix.correct(model, (inputs, labels), alpha=ALPHA, progress=False, **settings)
    seconds = time.perf_counter() - begun
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "corrected": len(correction.corrected),
        "device": str(device),
        "before": before,
        "beyond": peak(device) - before,
        "planned": plan.at_once + plan.weights,
        "passes": plan.passes,
        "in_file": plan.in_file,
        "forward_of_a_batch": forward,
        "seconds": seconds,
    }


def cases(*, quick: bool) -> list[rounds.Case]:
    """Return the networks; a quick run has the smallest one."""
    names = [QUICK] if quick else [*NETWORKS]
    return [
        rounds.Case(name, {"correction": NETWORKS[name].guess}, partial(_ready, name), {"correction": 1})
        for name in names
    ]


def _ready(name: str) -> rounds.Ready:
    return rounds.Ready({"correction": partial(alone, "benchmarks.speed.memory", name)})


if __name__ == "__main__":
    print(json.dumps(measure(NETWORKS[sys.argv[1]])))

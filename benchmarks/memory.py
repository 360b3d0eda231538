"""How much memory a correction takes besides the model and one batch, and how long, on the CPU or a GPU.

Run from the repository's root: ``python -m benchmarks.memory``, or with names of cases. Each case runs in a process of
its own: a forward pass of one batch beside a copy of the model first, then a correction with a given strength. The peak
of the second beyond that of the first is compared with what `verifix.inspect` foresees. Where torch finds a GPU, the
model is put there, and its memory is counted. Weights are random: neither memory nor time depends on them. Writes JSON
to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

import verifix
from benchmarks.coverage_models import declare_missing_operators
from benchmarks.environment import environment
from benchmarks.speed import of_torchvision
from verifix.capture.memory_plan import Limits
from verifix.model.run import to_device
from verifix.options import MemoryOptions

OUT = Path("benchmarks/results/memory.json")
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
class Case:
    """A network, how many samples it is corrected from, their shape, the batch, and the limit that is given."""

    build: Callable[[], nn.Module]
    samples: int
    shape: tuple[int, ...]
    batch: int
    memory: str | None = None


CASES = {
    **{
        f"ResNet50, 64 px, {count} images{', 1.5 GB' * limited}": Case(
            partial(of_torchvision, "resnet50"), count, (3, 64, 64), 50, "1.5GB" if limited else None
        )
        for count in (200, 1000)
        for limited in (False, True)
    },
    "VGG16, 224 px, 20 images": Case(partial(of_torchvision, "vgg16"), 20, (3, 224, 224), 4),
    "BERT, 64 tokens, 50 texts": Case(bert, 50, (TOKENS,), 10),
}


def inputs_of(case: Case, count: int) -> Any:
    """Return random images, or texts without padding."""
    if len(case.shape) > 1:
        return torch.randn(count, *case.shape)
    ids = torch.randint(1, 1000, (count, *case.shape))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def peak(device: torch.device, *, reset: bool = False) -> int:
    """Return the most bytes that were taken since the last reset, and reset it if that is asked for."""
    if device.type == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def measure(case: Case) -> dict[str, Any]:
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


def main() -> None:
    """Measure the cases that were asked for, and add what was found to the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=list(CASES))
    parser.add_argument("--here", action="store_true", help="run the one case in this process, and print its figures")
    arguments = parser.parse_args()
    if arguments.here:
        print(json.dumps(measure(CASES[arguments.cases[0]])))
        return
    found = json.loads(OUT.read_text())["cases"] if OUT.exists() else {}
    for name in arguments.cases:
        command = [sys.executable, "-m", "benchmarks.memory", "--here", name]
        answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[name] = json.loads(answer.stdout.splitlines()[-1])
        row = found[name]
        print(f"{name}: {row['beyond'] / 1e9:.2f} GB beyond, {row['planned'] / 1e9:.2f} GB planned")
        OUT.write_text(json.dumps({"cases": found, **environment()}, indent=1) + "\n")


if __name__ == "__main__":
    main()

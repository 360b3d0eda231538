"""Corrections that processes share: ``torchrun -m tests.rank_cases FOLDER NAME …`` saves what each has found."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import verifix
from verifix.capture import collect
from verifix.cli import main as cli
from verifix.errors import UsageError, VerifixError
from verifix.recipe.stages import Project
from verifix.storage import chunks

ROOT = Path(__file__).resolve().parents[1]


def launched(processes: int, *words: str, timeout: float = 400, **environment: str) -> subprocess.CompletedProcess:
    """Run a module in several processes, with one thread each."""
    return subprocess.run(
        [*command(processes), *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        **inside(environment),
    )


def command(processes: int) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "-m"]


def inside(environment: dict[str, str]) -> dict[str, Any]:
    paths = f"{ROOT / 'src'}{os.pathsep}{ROOT}"
    return {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **environment}}


def errors_in(text: str) -> list[str]:
    """Lines that verifix wrote as errors, among those of torchrun."""
    return [line for line in text.splitlines() if line.startswith("verifix: error: ")]


def pictures(n: int, dtype: torch.dtype, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    bright = torch.eye(3, dtype=dtype)[labels][:, :, None, None]
    return bright + torch.randn(n, 3, 10, 10, generator=generator, dtype=torch.float64).to(dtype), labels


def convolutional(dtype: torch.dtype) -> nn.Module:
    """A network that has learned a few wrong labels."""
    return copy.deepcopy(_trained()).to(dtype).eval()


@cache
def _trained() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(256, 32),  # wider than any fold has samples
        nn.ReLU(),
        nn.Linear(32, 3),
    ).double()
    x, y = pictures(90, torch.float64, seed=1)
    wrong = torch.where(torch.arange(90) % 3 == 0, (y + 1) % 3, y)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), wrong).backward()
        optimizer.step()
    return model


class Texts(nn.Module):
    """Attention over tokens that a mask hides in part; some samples have many."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(20, 12)
        self.layer = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, batch_first=True)
        self.head = nn.Linear(12, 2)

    def forward(self, input_ids, attention_mask):
        hidden = self.layer(self.words(input_ids), src_key_padding_mask=attention_mask == 0)
        return self.head(hidden[:, 0])


def texts() -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    ids, lengths = torch.randint(1, 20, (70, 9)), torch.randint(2, 10, (70,))
    mask = (torch.arange(9) < lengths[:, None]).long()
    return Texts().double().eval(), ({"input_ids": ids * mask, "attention_mask": mask}, torch.arange(70) % 2)


def noisy(dtype: torch.dtype) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """A network that listens to what its inputs hardly hold, which a projection cures."""
    torch.manual_seed(0)
    labels = torch.arange(120) % 3
    inputs = torch.cat([2 * torch.eye(3)[labels] + 0.5 * torch.randn(120, 3), 0.4 * torch.randn(120, 17)], dim=1)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3))
    with torch.no_grad():
        model[0].weight[:3, :3] += 2 * torch.eye(3)
        model[2].weight[:, :3] += 2 * torch.eye(3)
        model[0].weight[:, 3:] += torch.randn(16, 17)
    return model.to(dtype).eval(), (inputs.to(dtype), labels)


def corrected(model: nn.Module, samples: Any, **settings: Any) -> verifix.Correction:
    return verifix.correct(model, samples, **{"batch_size": 16, "progress": False, "check_labels": False} | settings)


def at(alpha: float, dtype: torch.dtype, **settings: Any) -> Callable[[], verifix.Correction]:
    return lambda: corrected(convolutional(dtype), pictures(110, dtype), alpha=alpha, **settings)


def wrapped() -> verifix.Correction:
    model = convolutional(torch.float64)
    if dist.is_initialized():
        model = nn.parallel.DistributedDataParallel(model)
    return corrected(model, pictures(60, torch.float64), alpha=30.0)


def gathered() -> verifix.Correction:
    """Correct a model that is sharded by FSDP2, as docs/many-machines.md says."""
    model, samples = convolutional(torch.float64), pictures(60, torch.float64)
    if not dist.is_initialized():
        return corrected(model, samples, alpha=30.0)
    sharded = fully_shard(copy.deepcopy(model), mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    with pytest.raises(UsageError, match="gather a full state dict"):
        corrected(sharded, samples, alpha=30.0)
    whole = StateDictOptions(full_state_dict=True)
    plain = copy.deepcopy(model)
    nn.init.zeros_(plain[0].weight)
    plain.load_state_dict(get_model_state_dict(sharded, options=whole))
    fixed = corrected(plain, samples, alpha=30.0)
    set_model_state_dict(sharded, fixed.model.state_dict(), options=whole)
    again = get_model_state_dict(sharded, options=whole)
    assert all(torch.equal(again[name], value) for name, value in fixed.corrected.items())
    return fixed


CASES: dict[str, Callable[[], verifix.Correction]] = {
    "choice, float64": lambda: corrected(*noisy(torch.float64), recipe="verifix"),
    "choice, float32": lambda: corrected(*noisy(torch.float32), recipe="verifix"),
    "memory": lambda: corrected(*noisy(torch.float64), recipe="verifix", memory="40kB"),
    "unlabelled": lambda: corrected(
        *noisy(torch.float64),
        recipe="project_unlabelled",
        unlabelled=noisy(torch.float64)[1][0][:70] + 0.1,
        noisy=(noisy(torch.float64)[1][0] - 0.1, noisy(torch.float64)[1][1]),
    ),
    "jittered": lambda: corrected(*noisy(torch.float64), recipe="project_jittered", batch_size=16),
    "every stage": lambda: corrected(*noisy(torch.float64), batch_size=64),
    "1000, float64": at(1000.0, torch.float64),
    "1, float32": at(1.0, torch.float32),
    "1000, float32": at(1000.0, torch.float32),
    "1e6, float32": at(1e6, torch.float32),
    "fewer batches than processes": at(30.0, torch.float64, batch_size=100),
    "texts": lambda: corrected(*texts(), alpha=30.0, batch_size=8),
    "wrapped": wrapped,
    "gathered": gathered,
}


def found(name: str) -> dict[str, Any]:
    fixed = CASES[name]()
    return {
        "corrected": dict(fixed.corrected),
        "strengths": fixed.strengths,
        "provenance": fixed.provenance,
        "layers": [report.line for report in fixed.layers],
    }


def trusted() -> dict[str, Any]:
    """Samples picked by each method, with all scores."""
    picked = {
        method: verifix.trust(convolutional(torch.float32), pictures(100, torch.float32), **TRUST, method=method)
        for method in ("low-loss", "low-curvature")
    }
    return {method: (each.indices, each.scores) for method, each in picked.items()}


TRUST = {"count": 30, "batch_size": 16, "progress": False}


def chosen() -> dict[str, Any]:
    """Samples to verify, by strategies that score all."""
    model, samples = convolutional(torch.float32), pictures(100, torch.float32)
    how = {"count": 30, "batch_size": 16, "progress": False}
    return {each: verifix.select(model, samples, strategy=each, **how).entries for each in ("uncertain", "spread")}


def proof() -> dict[str, Any]:
    """A nested proof."""
    found = verifix.prove(
        *noisy(torch.float64), recipe="project,refit", batch_size=16, progress=False, verified_from="unseen"
    )
    return {"before": found.before, "after": found.after, "folds": [fold.strengths for fold in found.folds]}


def work() -> dict[str, Any]:
    """Which samples a correction runs to collect moments, and in how many folds it fits each strength."""
    samples: list[int] = []
    fits: Counter[float] = Counter()
    run, predict = collect._run, Project.predict

    def counted(*args: Any, **settings: Any) -> Any:
        if not settings.get("trial"):
            samples.extend(args[2].indices)
        return run(*args, **settings)

    def predicted(stage: Project, strength: float) -> torch.Tensor:
        fits[strength] += 1
        return predict(stage, strength)

    with patch.object(collect, "_run", counted), patch.object(Project, "predict", predicted):
        corrected(*noisy(torch.float64), recipe="verifix")
        done = {"samples": list(samples), "fits": Counter(fits)}
        fits.clear()
        corrected(*noisy(torch.float64), recipe="verifix", folds=2)
    return done | {"fits with two folds": fits}


def refused() -> dict[str, Any]:
    """What each process is told if one of them was given something else; after that, all go on."""
    first, (model, (x, y)) = dist.get_rank() == 0, noisy(torch.float64)
    other, bad = copy.deepcopy(model), x.clone()
    if not first:
        other[0].bias.data += 1
        bad[3] = torch.nan
    calls: dict[str, Callable[[], Any]] = {
        "weights": lambda: corrected(other, (x, y), alpha=1.0),
        "samples": lambda: corrected(model, (x if first else x + 1, y), alpha=1.0),
        "order": lambda: corrected(model, (x, y) if first else (x.flip(0), y.flip(0)), alpha=1.0),
        "settings": lambda: corrected(model, (x, y), alpha=1.0 if first else 2.0),
        "trust, weights": lambda: verifix.trust(other, (x, y), **TRUST),
        "trust, samples": lambda: verifix.trust(model, (x if first else x + 1, y), **TRUST),
        "moments, weights": lambda: verifix.collect_moments(other, (x, y), progress=False),
        "one fails": lambda: corrected(model, (bad, y), alpha=1.0),
        "rows": lambda: corrected(model, (x, y), alpha=1.0, max_rows=50),
    }
    messages = {}
    for name, call in calls.items():
        with pytest.raises(VerifixError) as caught:
            call()
        messages[name] = str(caught.value)
    return messages


EXTRA: dict[str, Callable[[], dict[str, Any]]] = {
    "trusted": trusted,
    "chosen": chosen,
    "proof": proof,
    "work": work,
    "refused": refused,
}

SHORT = ("choice, float32", "1000, float64", "1, float32", "1e6, float32", "memory", "work")
"""What four processes run, too: there the order of sums differs most."""


def main() -> None:
    folder, *names = sys.argv[1:]
    if folder == "verifix":
        chunks.CHUNK, sys.argv[1:] = 16, names
        sys.exit(cli.main())
    dist.init_process_group("gloo")
    results = {name: EXTRA[name]() if name in EXTRA else found(name) for name in names}
    torch.save(results, Path(folder) / f"{dist.get_world_size()}.{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

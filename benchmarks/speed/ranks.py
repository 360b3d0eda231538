"""One correction in one process, and shared by two and four that gloo connects, on this machine.

Every process has one thread, so that more of them have more of the machine until its cores are used up. In float32 the
paper's recipe chooses the strength; in float64 it is given. The corrected weights are compared with those of one
process. The seconds are those of the first process from the moment when all have loaded network and samples.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

import verifix
from benchmarks.speed.problems import problem
from benchmarks.speed.process import alone
from benchmarks.speed.rounds import Case, Found, Ready
from verifix.model.threads import available_processors

PROCESSES = (1, 2, 4)
ALPHA = 1000.0
DTYPES = ("float32", "float64")


def cases(*, quick: bool) -> list[Case]:
    """Return one case per dtype; a quick run has the second, with few images, and once."""
    if quick:
        return [case_of("vgg11_bn", 50, DTYPES[1], 15, once=True)]  # of so few, no strength is chosen
    return [case_of("vgg11_bn", 1000, dtype, 100) for dtype in DTYPES]


def case_of(
    name: str,
    count: int,
    dtype: str,
    guess: float = 10,
    processes: Sequence[int] = PROCESSES,
    *,
    once: bool = False,
) -> Case:
    """Return the comparison for one network and dtype."""
    title = {"vgg11_bn": "VGG11-BN"}.get(name, name)
    guesses = dict.fromkeys(map(str, processes), guess)
    prepare = partial(_ready, name, count, dtype, processes)
    return Case(f"{title}, {count:,} samples, {dtype}", guesses, prepare, dict.fromkeys(guesses, 1) if once else {})


def _ready(name: str, count: int, dtype: str, processes: Sequence[int]) -> Ready:
    folder = tempfile.TemporaryDirectory()
    choice = "chosen" if dtype == "float32" else ALPHA
    about = {"samples": count, "dtype": dtype, "alpha": choice, "processors": available_processors()}
    run = {str(k): partial(_launched, k, name, count, dtype, folder.name) for k in processes}
    return Ready(run, about, partial(compared, folder, processes))


def _launched(processes: int, name: str, count: int, dtype: str, folder: str) -> Found:
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    return alone(__name__, name, count, dtype, folder, launcher=launcher, OMP_NUM_THREADS="1")


def compared(folder: tempfile.TemporaryDirectory[str], processes: Sequence[int]) -> Found:
    """Return the largest difference of a layer from that of one process, relative to the layer."""
    with folder as path:
        one, *others = (load_file(Path(path) / f"{k}.safetensors") for k in processes)
    return {"differences": {str(k): difference(one, other) for k, other in zip(processes[1:], others, strict=True)}}


def difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float | None:
    """Return the largest relative Frobenius difference of a tensor.

    Parameters
    ----------
    one, other
        Corrected tensors by name.

    Returns
    -------
    float or None
        Infinity if they do not have the same names; None if no tensor was changed, so that nothing is compared.
    """
    if one.keys() != other.keys():
        return float("inf")
    return max((float((one[n] - other[n]).double().norm() / one[n].double().norm()) for n in one), default=None)


def work(name: str, count: int, dtype: str, folder: Path) -> Found:
    """Correct in this process and the others, write the weights, and return what it took."""
    kind = getattr(torch, dtype)
    case = problem(name, count)
    model, inputs = case.model.to(kind), case.inputs.to(kind)
    how: dict[str, Any] = {"recipe": "verifix"} if dtype == "float32" else {"alpha": ALPHA, "check_labels": False}
    dist.init_process_group("gloo")
    dist.barrier()
    start = time.perf_counter()
    correction = verifix.correct(model, inputs, case.labels, verified_from="unseen", progress=False, **how)
    found = {"seconds": time.perf_counter() - start, "strengths": correction.strengths}
    if dist.get_rank() == 0:
        save_file(
            {k: x.contiguous() for k, x in correction.corrected.items()},
            folder / f"{dist.get_world_size()}.safetensors",
        )
    dist.destroy_process_group()
    return found


if __name__ == "__main__":
    network, number, kind_of, where = sys.argv[1:]
    result = work(network, int(number), kind_of, Path(where))
    if os.environ["RANK"] == "0":
        print(json.dumps(result))

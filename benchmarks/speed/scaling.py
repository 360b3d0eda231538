"""How time and memory grow with the number of verified samples, the width of layers, and the number of layers.

Each point runs in a process of its own, where its contenders take turns: a forward pass, the pass that collects
moments, and a whole correction with a given strength, whose memory is the peak beyond what the process held before.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from functools import partial
from typing import Any

import verifix
from benchmarks.speed.problems import CPU, Problem, capture, forward, problem
from benchmarks.speed.process import alone, peak
from benchmarks.speed.rounds import Case, Found, Ready, timed

ALPHA = 1000.0
CONTENDERS = {"forward": forward, "capture": capture}
CORRECTION = "correction"
ROWS, WIDTH, DEPTH = 4096, 512, 4

AXES: Mapping[str, Mapping[int, tuple[str, int]]] = {
    "verified samples (VGG11-BN)": {n: ("vgg11_bn", n) for n in (100, 200, 400, 800)},
    "width d of the layers": {d: (f"chain-{d}x{DEPTH}", ROWS) for d in (256, 512, 1024, 2048, 4096)},
    "layers": {k: (f"chain-{WIDTH}x{k}", ROWS) for k in (2, 4, 8, 16, 32)},
}
"""What grows: size → network and number of samples. Chains of linear layers have one row per sample."""

SIZES = {axis: max(points) for axis, points in AXES.items()}
"""The largest size of each."""


def cases(*, quick: bool) -> list[Case]:
    """Return one case per axis; a quick run has the three smallest sizes of each, once."""
    return [case_of(axis, dict([*points.items()][: 3 if quick else None]), once=quick) for axis, points in AXES.items()]


def case_of(axis: str, points: Mapping[int, tuple[str, int]], *, once: bool = False) -> Case:
    """Return the case of one axis: its contenders are the points."""
    guess = {str(size): 6.0 + 20 * (size / SIZES[axis]) ** 2 for size in points}
    run = {str(size): partial(alone, __name__, name, count) for size, (name, count) in points.items()}
    return Case(axis, guess, partial(Ready, run, {"alpha": ALPHA}), dict.fromkeys(guess, 1) if once else {})


def work(case: Problem) -> Found:
    """Measure one point in this process."""
    before = peak(CPU, reset=True)
    settings: dict[str, Any] = {"verified_from": "unseen", "check_labels": False, "progress": False}
    correction = timed(lambda: verifix.correct(case.model, case.inputs, case.labels, alpha=ALPHA, **settings))
    found = {CORRECTION: correction["seconds"], "beyond": peak(CPU) - before, "seconds": correction["seconds"]}
    return found | {name: run(case)["seconds"] for name, run in CONTENDERS.items()}


if __name__ == "__main__":
    network, number = sys.argv[1:]
    warm = problem(network, int(number))
    forward(warm)  # the first run of a process loads what all others share
    print(json.dumps(work(warm)))

"""Whether the cost model of convolutions picks the faster of its two ways, and what it costs where it does not.

Run from the repository's root: ``python -m benchmarks.cost_model``. For each geometry, XᵀX of the patches is made by
lags and by unfolding, in turns and on one thread, and the least processor times of both are compared with the decision
of `Patches.worthwhile`. Writes JSON to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment
from verifix.capture.kinds.convolution import unfold
from verifix.capture.kinds.lags import Geometry, Patches, PatchMoments
from verifix.moments import Moments

OUT = Path("benchmarks/results/cost_model.json")
PIXELS = 40_000
"""About so many pixels are multiplied for each geometry, in batches of at most 64 samples."""

TABLE: tuple[tuple[int, tuple[int, ...], int], ...] = (
    *((channels, (side, side), 3) for channels, side in ((3, 32), (4, 32), (8, 32), (16, 32), (64, 56), (64, 16))),
    *((channels, (side, side), 3) for channels, side in ((128, 28), (128, 8), (256, 14), (256, 4), (512, 7), (512, 2))),
    *((channels, (side, side), 5) for channels, side in ((6, 14), (16, 14), (32, 28), (64, 7))),
    *((channels, (side, side), 7) for channels, side in ((3, 56), (16, 28), (32, 7), (64, 4))),
    *((channels, (length,), 3) for channels, length in ((8, 256), (64, 128), (256, 64), (512, 16))),
)
"""Channels, sizes of the map, and side of the filter, which has stride 1 and keeps the size of the map."""


def patches_of(channels: int, space: Sequence[int], kernel: int) -> Patches:
    """Return one batch of a geometry."""
    axes = len(space)
    geometry = Geometry(tuple(space), (kernel,) * axes, ((kernel // 2, kernel // 2),) * axes, (1,) * axes)
    return Patches(torch.randn(min(64, max(2, PIXELS // geometry.pixels)), channels, *space), 1, geometry)


def by_lags(patches: Patches) -> None:
    """Multiply without patches."""
    PatchMoments(patches).condense_()


def unfolded(patches: Patches) -> None:
    """Multiply the patches."""
    geometry, total = patches.geometry, None
    strides = (1,) * len(geometry.space)
    for rows in unfold(patches.x, geometry.kernel, strides, geometry.pads, geometry.dilation, patches.groups):
        total = Moments(rows) if total is None else total.add_(rows)
    if total is not None:
        total.condense_()


def seconds(run: Callable[[Patches], None], patches: Patches) -> float:
    """Return the processor time of one run, which other processes disturb less than the time of the clock."""
    start = time.process_time()
    run(patches)
    return time.process_time() - start


def measure(channels: int, space: Sequence[int], kernel: int, rounds: int) -> dict[str, Any]:
    """Time both ways of one geometry in turns."""
    patches = patches_of(channels, space, kernel)
    times = [(seconds(by_lags, patches), seconds(unfolded, patches)) for _ in range(rounds + 1)][1:]
    lags, unfolding = (min(column) for column in zip(*times, strict=True))
    taken = lags if patches.worthwhile else unfolding
    return {
        "channels": channels,
        "space": list(space),
        "kernel": kernel,
        "samples": len(patches.x),
        "lags": lags,
        "unfolded": unfolding,
        "worthwhile": patches.worthwhile,
        "over_faster": taken / min(lags, unfolding),
    }


def main() -> None:
    """Measure the table, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=4)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = []
    for channels, space, kernel in TABLE:
        rows.append(row := measure(channels, space, kernel, arguments.rounds))
        ways = f"lags {1e3 * row['lags']:.1f} ms, unfolded {1e3 * row['unfolded']:.1f} ms"
        chosen = "lags" if row["worthwhile"] else "unfolded"
        print(f"{channels} channels, {space}, {kernel}: {ways}, {chosen}, {row['over_faster']:.2f}", flush=True)
    OUT.write_text(json.dumps({"geometries": rows, **environment()}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

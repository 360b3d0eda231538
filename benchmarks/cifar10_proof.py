"""The nested proof of the default recipe on the real network of ../shared: what it takes, and whether it is right.

Run from the repository's root: ``python -m benchmarks.cifar10_proof``. The command corrects the network with its 1,000
verified images and proves the gain inside them; the report goes to --report. Then both networks are compared on the
4,000 images of the pool, which nothing else uses: the gain there is what the proof should have said. Writes JSON to
benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.cifar10_vgg11 import NORMALISE
from benchmarks.environment import environment


def run(*words: str | Path) -> tuple[dict[str, Any], float, float]:
    """Run a command in a process of its own; return its JSON, its seconds and its peak memory in gigabytes."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "verifix.cli", *map(str, words), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        text = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(process.returncode)
    return json.loads(text), round(time.perf_counter() - start, 1), round(1024 * usage.ru_maxrss / 1e9, 2)


def main() -> None:
    """Correct, prove, compare, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data and networks")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cifar10_proof.json"))
    parser.add_argument("--report", type=Path, default=Path("cifar10_proof.html"))
    parser.add_argument("--recipe", default="auto")
    arguments = parser.parse_args()
    shared, model = arguments.shared, f"py:{arguments.shared / 'networks/vgg11_bn_cifar.py'}:build"
    checkpoint = shared / "networks/vgg11_bn_cifar10_sym25.safetensors"
    with tempfile.TemporaryDirectory() as folder:
        fixed = Path(folder) / "fixed.safetensors"
        inputs = ["--model", model, "--checkpoint", checkpoint, "--verified", shared / "data/cifar10_verified.parquet"]
        options = ["--verified-from", "unseen", "--recipe", arguments.recipe, *NORMALISE]
        outputs = ["--out", fixed, "--report", arguments.report, "--force"]
        result, seconds, memory = run("correct", *inputs, *options, *outputs)
        data = ["--data", shared / "data/cifar10_pool.parquet", "--model", model, *NORMALISE]
        pool, _, _ = run("compare", checkpoint, fixed, *data)
    kept = ("samples", "before", "after", "gain", "fixed", "broken", "p_better", "verdict")
    record = {
        "recipe": arguments.recipe,
        "strengths": result["strengths"],
        "seconds": seconds,
        "peak_gigabytes": memory,
        "proof": {key: result["proof"][key] for key in ("kind", "estimated", "seconds", "folds")},
        "verified": {key: result["proof"]["comparison"][key] for key in kept},
        "pool": {key: pool[key] for key in kept},
    }
    arguments.out.write_text(json.dumps(record | environment(), indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""The real network of ../shared, corrected by the command line with its 1,000 verified images and scored on test.

Run from the repository's root: ``python -m benchmarks.cifar10_vgg11``. Every choice is made inside the verified
images; the 10,000 test images are scored once before and once after. Writes JSON to benchmarks/results.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.environment import environment

NORMALISE = ["--mean", "0.491,0.482,0.447", "--std", "0.247,0.243,0.262"]


def main() -> None:
    """Run the command in a process of its own, measure it from outside, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data and networks")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cifar10_vgg11.json"))
    arguments = parser.parse_args()
    files = {
        "network": arguments.shared / "networks/vgg11_bn_cifar.py",
        "checkpoint": arguments.shared / "networks/vgg11_bn_cifar10_sym25.safetensors",
        "verified": arguments.shared / "data/cifar10_verified.parquet",
        "test": arguments.shared / "data/cifar10_test.parquet",
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *("correct", "--model", f"py:{files['network']}:build", "--checkpoint", files["checkpoint"]),
            *("--verified", files["verified"], "--verified-from", "unseen", *NORMALISE, "--recipe", "verifix"),
            *("--out", f"{folder}/fixed.safetensors", "--test", files["test"], "--json"),
        ]
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "verifix.cli", *map(str, command)], stdout=subprocess.PIPE, text=True, check=False
        )
        seconds = time.perf_counter() - start
    if done.returncode not in (0, 3):
        sys.exit(done.returncode)
    result = json.loads(done.stdout)
    record = {
        "test": result["test"],
        "strengths": result["strengths"],
        "choices": result["choices"],
        "seconds": round(seconds, 1),
        "peak_gigabytes": round(1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e9, 2),
        "looks_at_test_data": 2,
        "layers": result["layers"],
        "files": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()},
        **environment(),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    summary = {key: record[key] for key in ("test", "strengths", "seconds", "peak_gigabytes")}
    sys.stdout.write(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()

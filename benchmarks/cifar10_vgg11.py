"""The real network of ../shared, corrected by the command line with its 1,000 verified images and scored on test.

Run from the repository's root: ``python -m benchmarks.cifar10_vgg11``. Four recipes, each in a process of its own: the
default one, the paper's, and the head refit and the fine-tuning without a projection. Every choice is made inside the
verified images; the 10,000 test images are scored once before and once after each. Writes JSON to benchmarks/results,
where every look at the test images is logged, those of earlier runs included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.environment import environment

NORMALISE = ["--mean", "0.491,0.482,0.447", "--std", "0.247,0.243,0.262"]
RECIPES = ("auto", "verifix", "refit", "finetune")


def run(recipe: str, files: dict[str, Path]) -> dict[str, Any]:
    """Run the command in a process of its own, and measure it from outside."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            *("correct", "--model", f"py:{files['network']}:build", "--checkpoint", files["checkpoint"]),
            *("--verified", files["verified"], "--verified-from", "unseen", *NORMALISE, "--recipe", recipe),
            *("--out", f"{folder}/fixed.safetensors", "--test", files["test"], "--json"),
        ]
        start = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "verifix", *map(str, command)], stdout=subprocess.PIPE, text=True
        ) as process:
            text = process.stdout.read() if process.stdout else ""
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
    if process.returncode not in (0, 3):
        sys.exit(process.returncode)
    result = json.loads(text)
    return {
        **{key: result[key] for key in ("test", "strengths", "choices", "layers")},
        "seconds": round(seconds, 1),
        "peak_gigabytes": round(1024 * usage.ru_maxrss / 1e9, 2),
    }


def main() -> None:
    """Run every recipe, and write what came out."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data and networks")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/cifar10_vgg11.json"))
    parser.add_argument("--recipes", default=",".join(RECIPES), help="which to run; the others keep their figures")
    arguments = parser.parse_args()
    files = {
        "network": arguments.shared / "networks/vgg11_bn_cifar.py",
        "checkpoint": arguments.shared / "networks/vgg11_bn_cifar10_sym25.safetensors",
        "verified": arguments.shared / "data/cifar10_verified.parquet",
        "test": arguments.shared / "data/cifar10_test.parquet",
    }
    earlier = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    recipes, looks = dict(earlier.get("recipes", {})), list(earlier.get("looks_at_test_data", []))
    for recipe in arguments.recipes.split(","):
        recipes[recipe] = run(recipe, files) | environment()
        looks.append(
            {
                "when": datetime.now(timezone.utc).isoformat(timespec="minutes"),
                "recipe": recipe,
                "commit": recipes[recipe]["commit"],
                "scored": 2,
                **recipes[recipe]["test"],
            }
        )
        record = {
            "recipes": recipes,
            "looks_at_test_data": looks,
            "files": {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()},
        }
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        summary = {key: recipes[recipe][key] for key in ("test", "strengths", "seconds", "peak_gigabytes")}
        sys.stdout.write(json.dumps({recipe: summary}, indent=2) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

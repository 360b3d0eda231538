"""What a measurement was made with."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from verifix.model.threads import set_by_user

PACKAGES = ("numpy", "scipy", "scikit-learn", "torchvision", "transformers")
"""Besides torch, what results can depend on."""


def environment() -> dict[str, Any]:
    """Return versions, the commit, and whether the source differs from it."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=False).stdout.strip()

    return {
        "verifix": version("verifix"),
        "torch": torch.__version__,
        "packages": {name: installed(name) for name in PACKAGES},
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "threads_set": set_by_user(torch.get_num_threads()),  # else verifix has chosen, up to that number
        "processors": os.cpu_count(),
        "commit": git("rev-parse", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", "src", "benchmarks", ":!benchmarks/results")),
    }


def installed(package: str) -> str:
    """Return the version of a package; empty if it is not there."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""

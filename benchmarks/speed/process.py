"""Runs in a process of their own, so that the memory of one is not that of another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def alone(module: str, *words: object, launcher: tuple[str, ...] = (), **environment: str) -> dict[str, Any]:
    """Run a module in a process of its own, and return what it prints last, which is JSON.

    Parameters
    ----------
    module
        Its name.
    *words
        What it is called with.
    launcher
        A module that starts it, with what that one is called with.
    **environment
        Variables to add to the environment.

    Returns
    -------
    dict
        What it found.

    Raises
    ------
    SystemExit
        If the process fails, after it has said why.
    """
    start = ["-m", *launcher] if launcher else []
    command = [sys.executable, *start, "-m", module, *map(str, words)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, **environment})
    if result.returncode or not result.stdout.strip():
        raise SystemExit(f"{' '.join(command)} ended with {result.returncode}; see above")
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return found


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

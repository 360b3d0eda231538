"""The file of what was measured: part → case → its runs, what it was made with, and in which run of the benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.environment import environment

OUT = Path("benchmarks/results/speed.json")

Record = dict[str, Any]


def read(path: Path = OUT) -> Record:
    """Return what a file holds; nothing if it is not there."""
    content: Record = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content


def write_case(path: Path, part: str, name: str, found: Record) -> None:
    """Add a case to a file, in place of the same case of an earlier run; everything else stays.

    Parameters
    ----------
    path
        The file.
    part, name
        Which case of which part.
    found
        What was measured.
    """
    record = read(path)
    record.setdefault(part, {})[name] = found | {"environment": environment()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

"""Run many cases, each in a process of its own, which begins where torch is imported already.

``python -m tests.children`` reads a list of cases as JSON from stdin and prints what became of each. It is a process of
its own, so that its cases have its environment, and so that their memory is not that of the tests.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 60.0
"""Seconds after which a case counts as hanging; what a case may take is asked of its processor time."""
MOST_MEMORY = 8 * 2**30
"""Bytes of addresses that a case may ask for, so that a failing one does not take the machine with it."""


@dataclass(frozen=True)
class Case:
    """What to run: a function ``module:name``, called with the words, in a folder."""

    name: str
    folder: str
    words: list[str]
    function: str = "verifix.cli.main:main"


@dataclass(frozen=True)
class Outcome:
    """What became of a case: its exit code (None if it hung), output, processor seconds and largest memory in bytes."""

    code: int | None
    out: str
    err: str
    seconds: float
    memory: int


def run_cases(cases: Sequence[Case], **environment: str) -> dict[str, Outcome]:
    """Run cases in children of one fresh process, with changes to its environment."""
    where = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1", **environment}
    result = subprocess.run(
        [sys.executable, "-m", "tests.children"],
        input=json.dumps([asdict(case) for case in cases]),
        capture_output=True,
        text=True,
        timeout=PATIENCE * (len(cases) + 1),
        check=False,
        env=where,
        cwd=ROOT,
    )
    assert result.returncode == 0, result.stderr
    return {name: Outcome(**outcome) for name, outcome in json.loads(result.stdout).items()}


def run_case(case: Case) -> Outcome:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("out", "err")]
        pid = os.fork()
        if pid == 0:
            _be_the_child(case, files)
        code, usage = _wait(pid)
        out, err = (file.read_text(errors="replace") if file.exists() else "" for file in files)
    return Outcome(code, out, err, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def _be_the_child(case: Case, files: Sequence[Path]) -> None:
    code: object = 99
    try:
        for stream, file in zip((1, 2), files, strict=True):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
        os.setpgid(0, 0)
        os.chdir(case.folder)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
        code = _function(case.function)(case.words)
    except SystemExit as error:
        code = error.code
    except BaseException as error:  # whatever it is, the parent has to hear of it
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        code = 98
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


def _wait(pid: int) -> tuple[int | None, Any]:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        found, status, usage = os.wait4(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status), usage
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    return None, os.wait4(pid, 0)[2]


def _function(name: str) -> Callable[[list[str]], object]:
    module, _, function = name.partition(":")
    found: Callable[[list[str]], object] = getattr(importlib.import_module(module), function)
    return found


def main() -> None:
    cases = [Case(**case) for case in json.loads(sys.stdin.read())]
    ours = ("verifix.cli.main", "verifix.cli.commands", "verifix.io.data.open")
    for module in (
        *ours,
        "cyclopts",
        "pyarrow.parquet",
        "PIL",
        *{case.function.partition(":")[0] for case in cases},
    ):
        importlib.import_module(module)
    import torch

    torch.set_num_threads(1)
    if any(word.startswith(("hf:", "auto_")) for case in cases for word in case.words):
        from benchmarks.coverage_models import declare_missing_operators

        _ = declare_missing_operators(), importlib.import_module("transformers")
    json.dump({case.name: asdict(run_case(case)) for case in cases}, sys.stdout)


if __name__ == "__main__":
    main()

"""How long the demo and a correction of digits take on a busy machine, compared with a quiet one.

Run from the repository's root on a machine that is otherwise quiet: ``python -m benchmarks.threads``. Each task runs
as a process of its own in the default environment: alone, beside one process that keeps a processor busy, and beside
as many of them as there are processors. The conditions take turns, and their medians are compared. Writes JSON to
benchmarks/results. With ``--unmanaged`` the tasks run as if verifix chose nothing: OMP_NUM_THREADS is the number of
processors, and threads spin for as long as GNU OpenMP lets them by default. Both ways are in one file.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.environment import environment
from verifix import correct
from verifix.cli.demo import digits
from verifix.model.threads import COUNT_VARIABLES, WAIT_VARIABLES, available_processors

OUT = Path("benchmarks/results/threads.json")
CONDITIONS = {"alone": 0, "one_busy": 1, "all_busy": available_processors()}
"""How many processes keep a processor busy meanwhile."""

TASKS = {
    "demo": "from verifix.cli.main import main; main()",
    "correct_digits": "from benchmarks.threads import correct_digits; correct_digits()",
}
"""Each task: the code of a process. Of the first, the command, the whole time counts; the second is a program that has
imported torch before verifix, and prints how long the correction took."""


def correct_digits() -> None:
    """Correct a network of the digits, and print the seconds."""
    data = digits.load(0)
    model = digits.trained(data, 0)
    start = time.perf_counter()
    correct(model, (data.inputs[data.verified], data.labels[data.verified]), progress=False)
    sys.stdout.write(f"{time.perf_counter() - start}\n")


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Keep processors busy for as long as the context lasts."""
    processes = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True) for _ in range(count)
    ]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def seconds_of(task: str, unmanaged: bool) -> float:
    """Run a task in a process of its own, without any settings of threads, and return the seconds."""
    where = {name: value for name, value in os.environ.items() if name not in (*COUNT_VARIABLES, *WAIT_VARIABLES)}
    if unmanaged:
        # The spin count is GNU OpenMP's default; it keeps the command from asking for passive waiting.
        where |= {"OMP_NUM_THREADS": str(available_processors()), "GOMP_SPINCOUNT": "300000"}
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-c", TASKS[task]]
        words += ["demo", "digits", "--out", folder] if task == "demo" else []
        start = time.perf_counter()
        result = subprocess.run(words, env=where, capture_output=True, text=True, check=True)
    return time.perf_counter() - start if task == "demo" else float(result.stdout)


def measure(rounds: int, unmanaged: bool) -> dict[str, Any]:
    """Measure all tasks under all conditions, which take turns.

    Parameters
    ----------
    rounds
        How many times.
    unmanaged
        Whether nothing is chosen.

    Returns
    -------
    dict
        For each task and condition the seconds of every run, their median, and its ratio to the one alone.
    """
    runs: dict[str, dict[str, list[float]]] = {task: {name: [] for name in CONDITIONS} for task in TASKS}
    for _ in range(rounds):
        for task, seconds in runs.items():
            for name, count in CONDITIONS.items():
                with busy(count):
                    seconds[name].append(round(seconds_of(task, unmanaged), 2))
                sys.stderr.write(f"{task}, {name}: {seconds[name][-1]} s\n")
    return {
        task: {
            name: {"median": median(own), "ratio": round(median(own) / median(seconds["alone"]), 2), "seconds": own}
            for name, own in seconds.items()
        }
        for task, seconds in runs.items()
    }


def main() -> None:
    """Measure, and write what came out beside what the file has of the other way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--unmanaged", action="store_true", help="as it would be if nothing was chosen")
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    found = measure(arguments.rounds, arguments.unmanaged)
    record = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    way = "unmanaged" if arguments.unmanaged else "chosen"
    record[way] = {"tasks": found, "load_before": round(load, 2), **environment()}
    arguments.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    rows = {f"{task}, {name}": row["median"] for task, own in found.items() for name, row in own.items()}
    sys.stdout.write(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()

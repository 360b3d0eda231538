"""Runs of a benchmark that can be stopped and go on: one line of JSON per run, and those that are there are not redone.

A run is named by its job, a frozen dataclass, whose fields are in its line. A run that fails is named, stays absent,
and makes the benchmark end with exit code 1; the others are measured.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment
from verifix.progress import progress_bar

Record = dict[str, Any]


def measure(path: Path, jobs: Sequence[Any], run: Callable[[Any], Record], workers: int) -> int:
    """Run the jobs that have no line yet, and add a line for each as soon as it is done.

    Parameters
    ----------
    path
        File of lines.
    jobs
        Frozen dataclasses of plain values.
    run
        Job → what was measured. A function of a module, if there are several workers.
    workers
        Processes of one thread each; 1 runs here, with all threads.

    Returns
    -------
    int
        How many failed.
    """
    there = read(path)
    missing = [job for job in jobs if not any(asdict(job).items() <= record.items() for record in there)]
    path.parent.mkdir(parents=True, exist_ok=True)
    _cut_off(path)
    common, failed = environment(), 0
    if workers > 1:
        common |= {"threads": 1, "threads_set": True}
    with progress_bar("runs", len(missing), show=True, unit="run") as bar, path.open("a", encoding="utf-8") as file:
        for job, found in _results(missing, run, workers):
            bar.update(1)
            if isinstance(found, Exception):
                sys.stderr.write(f"{job}: {type(found).__name__}: {found}\n")
                failed += 1
                continue
            file.write(json.dumps({**asdict(job), **found, "environment": common}) + "\n")
            file.flush()
    return failed


def concluded(
    path: Path,
    jobs: Sequence[Any],
    run: Callable[[Any], Record],
    workers: int,
    summed_up: Callable[[Sequence[Record]], Sequence[Record]],
) -> tuple[Sequence[Record], int]:
    """Measure what is missing, and write and print the table of all that is there.

    Parameters
    ----------
    path, jobs, run, workers
        As in `measure`; the table is written beside the lines.
    summed_up
        Records → the rows of the table.

    Returns
    -------
    rows : sequence of dict
        The table.
    code : int
        The exit code.
    """
    failed = measure(path, jobs, run, workers)
    records = read(path)
    rows = summed_up(records)
    write_summary(path.with_suffix(".json"), rows, records)
    sys.stdout.write(table(rows) + "\n")
    return rows, 1 if failed else 0


def read(path: Path) -> list[Record]:
    """Return the records of a file; none if there is no file. A last line that was cut off is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1]]  # what ends a record is its line break


def write_summary(path: Path, rows: Sequence[Record], records: Sequence[Record]) -> None:
    """Write a table, and what its records were made with.

    Parameters
    ----------
    path
        File of JSON.
    rows
        The table.
    records
        The records that it sums up.
    """
    made_with = [record["environment"] for record in records]
    versions = {key: sorted({str(one[key]) for one in made_with}) for key in ("commit", "dirty", "torch")}
    path.write_text(json.dumps({"rows": list(rows), **versions}, indent=1) + "\n", encoding="utf-8")


def table(rows: Sequence[Record]) -> str:
    """Render rows with the same keys as Markdown."""
    if not rows:
        return ""
    cells = [list(rows[0]), ["---"] * len(rows[0]), *([_spelled(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def wilson(hits: int, runs: int, level: float = 0.95) -> tuple[float, float]:
    """Return Wilson's interval of a share.

    Parameters
    ----------
    hits, runs
        So many of so many.
    level
        Of confidence.

    Returns
    -------
    low, high : float
        In percent.
    """
    from scipy.stats import binomtest

    ends = binomtest(hits, runs).proportion_ci(level, method="wilson")
    return 100 * float(ends.low), 100 * float(ends.high)


def _spelled(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def _cut_off(path: Path) -> None:
    """Take away a last line without its end, which a run that was killed has left."""
    if path.exists():
        text = path.read_text(encoding="utf-8")
        path.write_text(text[: text.rfind("\n") + 1], encoding="utf-8")


def _results(
    jobs: Sequence[Any], run: Callable[[Any], Record], workers: int
) -> Iterator[tuple[Any, Record | Exception]]:
    """Yield jobs with what came of them, in the order in which they end."""
    if workers == 1:
        yield from ((job, _tried(run, job)) for job in jobs)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=_one_thread) as pool:
        futures = {pool.submit(_tried, run, job): job for job in jobs}
        yield from ((futures[future], future.result()) for future in as_completed(futures))


def _tried(run: Callable[[Any], Record], job: Any) -> Record | Exception:
    try:
        return run(job)
    except Exception as error:  # the others can still be measured
        return error


def _one_thread() -> None:
    torch.set_num_threads(1)

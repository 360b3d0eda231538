"""``python -m benchmarks run TASK …`` measures what is missing; ``python -m benchmarks report`` writes docs/rivals.md.

What is there already is not run again, so that a run that was stopped goes on where it was. ``--again`` runs it all the
same, and counts one more look at the unseen samples. A cell that fails is named, stays absent, and makes the run end
with exit code 1; the others are measured.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from benchmarks.cells import FOLDER, Cell, measured, write
from benchmarks.coverage_models import declare_missing_operators
from benchmarks.grids import GRIDS
from benchmarks.methods import METHODS
from verifix.progress import progress_bar

WITH_TORCHVISION = ("vit", "bert")
"""Architectures whose libraries import torchvision."""


def main(words: Sequence[str] | None = None) -> int:
    """Run or report; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="measure the cells of some tasks that are missing")
    run.add_argument("tasks", nargs="+", choices=sorted(GRIDS), metavar="TASK", help=", ".join(sorted(GRIDS)))
    run.add_argument("--architectures", nargs="+", help="only these")
    run.add_argument("--methods", nargs="+", choices=list(METHODS), metavar="METHOD", help=", ".join(METHODS))
    run.add_argument("--seeds", nargs="+", type=int, help="only these")
    run.add_argument("--sizes", nargs="+", type=int, help="only these numbers of verified samples")
    run.add_argument("--again", action="store_true", help="also those that are there")
    run.add_argument("--workers", type=int, default=2, help="processes of one thread each; 1 uses all threads")
    run.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data and networks")
    run.add_argument("--cache", type=Path, help="folder for trained networks, to train each of them once")
    commands.add_parser("report", help="write the tables and plots of docs/rivals.md from the cells")
    arguments = parser.parse_args(words)
    if arguments.command == "report":
        from benchmarks.rivals_page import write_page

        write_page()
        return 0
    cells = wanted(arguments)
    groups = [list(own) for _, own in itertools.groupby(cells, key=lambda cell: cell.network)]
    groups = [[cell] for cell in cells] if arguments.workers == 1 else groups  # nothing to share out, more to see
    with progress_bar("cells", len(cells), show=True, unit="cell") as bar:
        failed = 0
        for group, failures in zip(groups, _results(groups, arguments), strict=True):
            bar.update(len(group))
            failed += failures
    if failed:
        sys.stderr.write(f"{failed} of {len(cells)} cells failed and are absent\n")
    return 1 if failed else 0


def wanted(arguments: argparse.Namespace) -> list[Cell]:
    """Return the cells to run, those of one network together.

    Parameters
    ----------
    arguments
        What was asked for.

    Returns
    -------
    list of Cell
        Sorted by network; without those whose file is there, unless they are to be run again.
    """
    chosen = {
        cell
        for task in arguments.tasks
        for grid in GRIDS[task]
        for cell in grid.cells()
        if (not arguments.architectures or cell.architecture in arguments.architectures)
        and (not arguments.methods or cell.method in arguments.methods)
        and (arguments.seeds is None or cell.seed in arguments.seeds)
        and (arguments.sizes is None or cell.verified in arguments.sizes)
        and (arguments.again or not cell.path().exists())
    }
    return sorted(chosen, key=lambda cell: (cell.network, cell.verified, list(METHODS).index(cell.method)))


def _results(groups: Sequence[Sequence[Cell]], arguments: argparse.Namespace) -> Iterator[int]:
    """Run groups of cells, and yield how many cells of each one failed."""
    common = [arguments.shared, arguments.cache]
    if arguments.workers == 1:
        yield from (_run(group, *common) for group in groups)
        return
    with ProcessPoolExecutor(arguments.workers, get_context("spawn"), initializer=_one_thread) as pool:
        yield from pool.map(_run, groups, *([value] * len(groups) for value in common))


def _one_thread() -> None:
    torch.set_num_threads(1)


def _run(cells: Sequence[Cell], shared: Path, cache: Path | None) -> int:
    """Run the cells of one network, and return how many of them failed."""
    library = declare_missing_operators() if any(cell.architecture in WITH_TORCHVISION for cell in cells) else None
    failed = sum(not _run_one(cell, shared, cache) for cell in cells)
    del library
    return failed


def _run_one(cell: Cell, shared: Path, cache: Path | None) -> bool:
    """Measure a cell, and tell whether that went well."""
    try:
        write(cell, measured(cell, shared, cache), FOLDER)
    except Exception as error:  # the others can still be measured
        sys.stderr.write(f"{cell}: {type(error).__name__}: {error}\n")
        return False
    return True

"""``python -m benchmarks.speed`` measures, ``python -m benchmarks.speed report`` writes docs/performance.md.

Run from the repository's root on a machine that is otherwise quiet. A run has up to six parts:

floor      the pass that collects moments, a forward pass, and the least that the moments can take
stages     whole corrections, and fine-tuning for as many passes as its best setting needs
strengths  five strengths of the projection, and the paper's way
scaling    more samples, wider layers, more layers
ranks      one, two and four processes
memory     the peak of a correction of large networks

What is compared takes turns in every round, and only figures of one run are divided by each other. Each case is written
to the file as soon as it is measured; the other parts and cases of the file stay. A case that is there is measured
again. The network of a folder `shared` beside or above the repository is used.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from benchmarks.speed import floor, memory, ranks, scaling, stages, strengths
from benchmarks.speed.page import write_page
from benchmarks.speed.record import OUT, read, write_case
from benchmarks.speed.rounds import Case, guesses_of, measured
from verifix.progress import duration, progress_bar

PARTS = {
    "floor": floor.cases,
    "stages": stages.cases,
    "strengths": strengths.cases,
    "scaling": scaling.cases,
    "ranks": ranks.cases,
    "memory": memory.cases,
}
QUICK_OUT = Path("build/speed.json")


def main(words: Sequence[str] | None = None) -> int:
    """Measure or report; return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=("run", "report"), default="run")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS), metavar="PART")
    parser.add_argument("--cases", nargs="+", default=[], metavar="WORD", help="only those whose name has such a word")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help=f"a subset with few samples, written to {QUICK_OUT}")
    parser.add_argument("--out", type=Path, help=f"file to add to; by default {OUT}")
    arguments = parser.parse_args(words)
    if arguments.command == "report":
        write_page()
        return 0
    if arguments.rounds < 1:
        parser.error(f"--rounds is {arguments.rounds}; give 1 or more")
    out = arguments.out or (QUICK_OUT if arguments.quick else OUT)
    chosen = [
        (part, case)
        for part in arguments.only
        for case in PARTS[part](quick=arguments.quick)
        if not arguments.cases or any(word in case.name for word in arguments.cases)
    ]
    if not chosen:
        parser.error(f"no case has {' or '.join(map(repr, arguments.cases))} in its name")
    measure(chosen, arguments.rounds, out)
    return 0


def measure(chosen: Sequence[tuple[str, Case]], rounds: int, out: Path) -> None:
    """Run cases, with an estimate before and a bar meanwhile, and write each as soon as it is done.

    Parameters
    ----------
    chosen
        Part and case.
    rounds
        How many.
    out
        The file.
    """
    when = datetime.now(timezone.utc).isoformat(timespec="seconds")
    common = {"run": when, "load_before": round(os.getloadavg()[0], 2)}
    earlier = read(out)
    expected = [guesses_of(case, earlier.get(part, {})) for part, case in chosen]
    total = sum(
        case.rounds_of(name, rounds) * round(guess)
        for (_, case), guesses in zip(chosen, expected, strict=True)
        for name, guess in guesses.items()
    )
    sys.stderr.write(f"{len(chosen)} cases in {rounds} rounds: about {duration(total)}, loading not counted\n")
    with progress_bar("speed", total, show=True, unit="s") as bar:
        for (part, case), guesses in zip(chosen, expected, strict=True):
            write_case(out, part, case.name, measured(case, rounds, guesses, bar) | common)


if __name__ == "__main__":
    sys.exit(main())

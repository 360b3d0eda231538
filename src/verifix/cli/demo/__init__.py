"""The demonstrations: a small network learns wrong labels in seconds, and is corrected."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from verifix.cli.demo import digits, spiral
from verifix.cli.demo.outcome import Outcome
from verifix.cli.demo.told import REPORT
from verifix.errors import UsageError
from verifix.progress import progress_bar, tell
from verifix.storage.atomic import check_apart, check_output

DEMOS: dict[str, Callable[[int, Path | None], Outcome]] = {"digits": digits.run, "spiral": spiral.run}
"""Each demonstration: a seed, and the folder for its files or None → what came out."""


WRITTEN = {
    "digits": ("digits-set-right.png", "strength-curve.png", REPORT),
    "spiral": ("decision-boundaries.png", "strength-curve.png", REPORT),
}
"""Names of the files that each demonstration writes."""


def run(
    name: str, seed: int, seeds: int, out: str | None, inputs: Sequence[Path] = (), *, force: bool = False
) -> tuple[dict[str, Any], str]:
    """Run a demonstration for one or more seeds; pictures and report are of the first.

    Parameters
    ----------
    name
        Which one; a key of `DEMOS`.
    seed, seeds
        First seed, and how many.
    out
        Folder for pictures and report; a fresh one by default.
    inputs
        Files that the command has read, which nothing may replace.
    force
        Replace files that exist.

    Returns
    -------
    result : dict
        ``{"seeds": [{"seed", "before", "after", "gain", "alpha"}], "mean_before", "mean_gain", "seconds"}``, percent
        right on samples that nothing else used.
    text : str
        The same for reading, and where the files are.
    """
    folder, fresh = _folder(out)
    check_apart([folder / picture for picture in WRITTEN[name]], inputs)
    for picture in (*folder.glob("*.png"), *(folder / picture for picture in WRITTEN[name])):
        check_output(picture, force=force)
    start = time.perf_counter()
    outcomes = []
    try:
        with progress_bar(f"demo {name}", seeds, True, unit="seed") as bar:
            for s in range(seed, seed + seeds):
                outcomes.append(DEMOS[name](s, folder if s == seed else None))
                bar.update()
    except BaseException:
        if fresh:
            shutil.rmtree(folder)
        raise
    tell(f"report and pictures in {folder}/", show=True)
    rows = [{**outcome.scores(), "seed": s} for s, outcome in enumerate(outcomes, seed)]
    result = {
        "seeds": [{key: row[key] for key in ("seed", "before", "after", "gain", "alpha")} for row in rows],
        "mean_before": sum(o.before for o in outcomes) / seeds,
        "mean_gain": sum(o.after - o.before for o in outcomes) / seeds,
        "seconds": round(time.perf_counter() - start, 2),
    }
    return result, _text(seed, outcomes, result, folder)


def _folder(out: str | None) -> tuple[Path, bool]:
    """Return the folder for the files, and whether it was made for this run."""
    if out is not None:
        folder, existed = Path(out), Path(out).exists()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{folder} cannot be made a folder ({error.strerror}); choose another --out") from None
        return folder, not existed
    number = 1
    while True:
        folder = Path(f"verifix-demo-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
        else:
            return folder, True


def _text(seed: int, outcomes: list[Outcome], result: dict[str, Any], folder: Path) -> str:
    lines = [outcomes[0].story]
    for s, o in enumerate(outcomes, seed):
        lines.append(
            f"seed {s}: fits {o.memorised:.1f}% of its noisy training labels; right on unseen samples {o.before:.1f}% "
            f"before, {o.after:.1f}% after ({o.after - o.before:+.1f}); {o.stages}"
        )
    if len(outcomes) > 1:
        lines.append(f"mean: {result['mean_before']:.1f}% before, gain {result['mean_gain']:+.1f}")
    lines.append(f"{result['seconds']:.1f} s; wrote {', '.join(outcomes[0].written)} in {folder}/")
    return "\n".join(lines)

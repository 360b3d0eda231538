"""The tables of docs/performance.md, from the file of what was measured."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import table
from benchmarks.speed import plots
from benchmarks.speed.floor import SIDE
from benchmarks.speed.record import read
from benchmarks.speed.rounds import Found, growth, median, ratios, seconds
from benchmarks.speed.scaling import CORRECTION
from benchmarks.speed.stages import FINETUNING, PROOF, RECIPES, REST, shares
from benchmarks.speed.strengths import OURS, PAPERS

PAGE, THREADS = Path("docs/performance.md"), Path("benchmarks/results/threads.json")
BEGIN, END = (
    "<!-- begin of what was measured; python -m benchmarks.speed report -->",
    "<!-- end of what was measured -->",
)
BUSY = 0.5
"""Load of the machine before a run from which on it is said."""

Cases = Mapping[str, Any]


def write_page(page: Path = PAGE) -> None:
    """Write everything between the marks of the page, and its plots."""
    record = read()
    before, rest = page.read_text(encoding="utf-8").split(BEGIN)
    threads = json.loads(THREADS.read_text(encoding="utf-8")) if THREADS.exists() else {}
    page.write_text(f"{before}{BEGIN}\n\n{sections(record, threads)}\n\n{END}{rest.split(END)[1]}", encoding="utf-8")
    for name, draw in plots.of(record):
        draw(page.parent / "images" / name)


def sections(record: Mapping[str, Cases], threads: Mapping[str, Any]) -> str:
    """Render all parts as Markdown.

    Parameters
    ----------
    record
        Part → case → what was measured.
    threads
        The file of `benchmarks.threads`.

    Returns
    -------
    str
        One section per part.
    """
    drawn = [name for name, _ in plots.of(record)]
    found = []
    for part, (title, render) in PARTS.items():
        cases = record.get(part, {})
        body = [_made_with(cases), *render(cases)] if cases else ["Not measured yet."]
        if cases and plots.NAMES.get(part) in drawn:
            body.append(f"![{title}](images/{plots.NAMES[part]})")
        found.append("\n\n".join([f"### {title}", *body]))
    found.append("\n\n".join(["### Beside busy processes", *_threads(threads)]))
    return "\n\n".join(found)


def spread(values: Sequence[float]) -> str:
    """Write the median of some values with their range, or the one value that there is; empty without any."""
    if not values:
        return ""
    ends = f" ({written(min(values))} to {written(max(values))})" if len(values) > 1 else ""
    return f"{written(median(values))}{ends}"


def written(value: float) -> str:
    """Write a positive number with about three digits, and whole thousands."""
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else f"{value:g}"


def floors(case: Mapping[str, Any]) -> list[float]:
    """Return the floor in forward passes, round by round: that pass, and the multiplications at the measured rate."""
    runs, work = case["runs"], case["about"]["moments_multiplications"] / SIDE**3
    pairs = zip(seconds(runs["forward"]), seconds(runs["product"]), strict=True)
    return [1 + work * product / forward for forward, product in pairs]


def _made_with(cases: Cases) -> str:
    """Say when, with what and on what machine the cases of a part were measured."""

    def all_of(value: Callable[[Mapping[str, Any]], object]) -> str:
        return ", ".join(dict.fromkeys(str(value(case)) for case in cases.values()))

    where = all_of(lambda case: case["environment"]["processors"])
    torch = all_of(lambda case: case["environment"]["torch"])
    commits = all_of(
        lambda case: case["environment"]["commit"][:7] + " with changes" * bool(case["environment"]["dirty"])
    )
    days = all_of(lambda case: case["run"][:10])
    rounds = all_of(lambda case: max(map(len, case["runs"].values())))
    busy = max(case.get("load_before", 0.0) for case in cases.values())
    said = f" The machine had other work meanwhile (load {busy:.1f})." if busy > BUSY else ""
    return f"Rounds: {rounds}. Processors: {where}. PyTorch {torch}, commit {commits}, {days}.{said}"


def _floor(cases: Cases) -> list[str]:
    rows = []
    for name, case in cases.items():
        runs = case["runs"]
        taken, floor = ratios(runs["capture"], runs["forward"]), floors(case)
        rows.append(
            {
                "network": name,
                "forward pass, s": spread(seconds(runs["forward"])),
                "with moments, forward passes": spread(taken),
                "the floor, forward passes": spread(floor),
                "times the floor": spread([a / b for a, b in zip(taken, floor, strict=True)]),
            }
        )
    return [table(rows)]


def _stages(cases: Cases) -> list[str]:
    found = []
    for name, case in cases.items():
        runs, about = case["runs"], case["about"]
        rows = [
            {
                name: contender,
                "s": spread(seconds(own)),
                "forward passes": spread(ratios(own, runs["forward"])),
                "of fine-tuning": spread(ratios(own, runs[FINETUNING])),
            }
            for contender, own in runs.items()
        ]
        timed = min(run["timed"] for run in runs[FINETUNING])
        part = "" if timed == about["passes"] else f" {timed} of them are timed, and the others taken to be as long."
        said = (
            f"Fine-tuning: {about['passes']} passes over the {about['samples']:,} samples at rate {about['rate']:g}, "
            f"which folds have chosen.{part} Choosing took {about['choosing']:,.0f} forward passes (a step counts as "
            f"three), from `benchmarks/results/cells/{about['cells']}`."
        )
        found += [table(rows), said]
        by_recipe = {recipe: shares(runs[recipe]) for recipe in RECIPES if runs.get(recipe)}
        stages = sorted({stage: None for own in by_recipe.values() for stage in own}, key=lambda name: name == REST)
        parts = [
            {"share of the time, %": stage, **{recipe: _share(own.get(stage)) for recipe, own in by_recipe.items()}}
            for stage in stages
        ]
        found += [table(parts)] if parts else []
        found += [f"The proof found: {run['verdict']}." for run in runs.get(PROOF, [])]
    return found


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}"


def _strengths(cases: Cases) -> list[str]:
    found = []
    for name, case in cases.items():
        runs, about = case["runs"], case["about"]
        extra = {way: [run["extra_bytes"] / 1e9 for run in runs[way]] for way in (OURS, PAPERS)}
        rows = [
            {
                name: way,
                "s": spread(seconds(runs[way])),
                "forward passes": spread(ratios(runs[way], runs["forward"])),
                "extra memory, GB": spread(extra[way]),
            }
            for way in (OURS, PAPERS)
        ]
        less = [ours / theirs for ours, theirs in zip(extra[OURS], extra[PAPERS], strict=False)]
        off = [
            {"α": f"{alpha:g}", "largest relative difference of a layer": f"{difference:.1e}"}
            for alpha, difference in zip(about["alphas"], about["differences"], strict=True)
        ]
        said = (
            f"verifix is {spread(ratios(runs[PAPERS], runs[OURS]))} times faster, with {spread(less)} of the "
            f"extra memory. {about['compared']} layers have no more than {about['cap']:,} rows, which both ways see:"
        )
        found += [table(rows), said, table(off)]
    return found


def _scaling(cases: Cases) -> list[str]:
    found = []
    for axis, case in cases.items():
        points = {float(size): own for size, own in case["runs"].items()}
        columns: dict[str, Callable[[Found], float]] = {
            "forward pass, s": lambda run: run["forward"],
            "with moments, s": lambda run: run["capture"],
            f"correction at α = {case['about']['alpha']:g}, s": lambda run: run[CORRECTION],
            "memory beyond, GB": lambda run: run["beyond"] / 1e9,
        }
        rows = [
            {axis: f"{size:,.0f}", **{title: spread([*map(of, own)]) for title, of in columns.items()}}
            for size, own in points.items()
        ]
        sizes = [*points]
        powers = {
            title: _power(sizes, [median([*map(of, own)]) for own in points.values()]) for title, of in columns.items()
        }
        found.append(table([*rows, {axis: "grows like", **powers}]))
    return found


def _power(sizes: Sequence[float], values: Sequence[float]) -> str:
    """Write the exponent that values grow with; empty where a value is zero."""
    return f"size^{growth(sizes, values):.2f}" if len(sizes) > 1 and min(values) > 0 else ""


def _ranks(cases: Cases) -> list[str]:
    rows = []
    for name, case in cases.items():
        runs = case["runs"]
        first, *_ = runs["1"]
        for processes, own in runs.items():
            same = all(run["strengths"] == first["strengths"] for run in own)
            off = "" if processes == "1" else _difference(case["about"]["differences"][processes])
            rows.append(
                {
                    "correction": name,
                    "processes": processes,
                    "s": spread(seconds(own)),
                    "times faster": spread(ratios(runs["1"], own)),
                    "largest relative difference of a layer": off,
                    "same choice": "yes" if same else "no",
                }
            )
    cores = ", ".join({str(case["about"]["processors"]) for case in cases.values()})
    said = (
        f"Each process has one thread, on one machine with {cores} cores: more processes than cores cannot be faster."
    )
    return [said, table(rows)]


def _difference(value: float | None) -> str:
    """Write a relative difference, or that there was nothing to compare."""
    return "no layer was changed" if value is None else f"{value:.1e}"


def _memory(cases: Cases) -> list[str]:
    rows = [
        {
            "network, corrected from": name,
            "parameters, millions": f"{run['parameters'] / 1e6:.1f}",
            "beyond, GB": f"{run['beyond'] / 1e9:.2f}",
            "foreseen, GB": f"{run['planned'] / 1e9:.2f}",
            "passes": run["passes"],
            "s": f"{run['seconds']:.0f}",
        }
        for name, case in cases.items()
        for run in case["runs"]["correction"][:1]
    ]
    return [table(rows)]


def _threads(record: Mapping[str, Any]) -> list[str]:
    if "chosen" not in record:
        return ["Not measured yet."]
    names = {"alone": "alone", "one_busy": "beside one busy process", "all_busy": "beside as many as processors"}
    titles = {"demo": "`verifix demo`", "correct_digits": "default correction of 200 digits"}
    rows = [
        {"s": titles[task], **{title: spread(own[name]["seconds"]) for name, title in names.items()}}
        for task, own in record["chosen"]["tasks"].items()
    ]
    return [table(rows)]


PARTS: Mapping[str, tuple[str, Callable[[Cases], list[str]]]] = {
    "floor": ("The pass that collects moments, and its floor", _floor),
    "stages": ("Corrections beside fine-tuning", _stages),
    "strengths": ("Five strengths, beside the paper's way", _strengths),
    "scaling": ("More samples, wider layers, more layers", _scaling),
    "ranks": ("More processes on one machine", _ranks),
    "memory": ("Memory of large networks", _memory),
}
"""Part → its heading, and what renders its cases."""

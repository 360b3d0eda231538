"""The plots of docs/performance.md: the same bytes for the same figures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.speed.rounds import median, ratios
from benchmarks.speed.scaling import CORRECTION
from benchmarks.speed.strengths import OURS, PAPERS

NAMES = {"stages": "speed-stages.svg", "scaling": "speed-scaling.svg", "ranks": "speed-ranks.svg"}
"""Part → its file in docs/images."""

LINES = {"forward": ("forward pass", "o"), "capture": ("with moments", "s"), CORRECTION: ("correction at one α", "D")}
"""What is drawn over a size: its label and marker."""

Cases = Mapping[str, Any]


def of(record: Mapping[str, Cases]) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """Yield the file name of each plot that there are figures for, and what draws it.

    Parameters
    ----------
    record
        Part → case → what was measured.

    Yields
    ------
    name : str
        In docs/images.
    draw : callable
        Path → writes the plot there.
    """
    for part, draw in (("stages", _stages), ("scaling", _scaling), ("ranks", _ranks)):
        if record.get(part):
            yield NAMES[part], partial(draw, record)


def _stages(record: Mapping[str, Cases], path: Path) -> None:
    """Draw how many forward passes each contender takes, one panel per network; the paper's way where it was run."""
    panels: dict[str, dict[str, Any]] = {name: dict(case["runs"]) for name, case in record["stages"].items()}
    units: dict[str, dict[str, Any]] = {name: dict.fromkeys(own, own["forward"]) for name, own in panels.items()}
    for name, case in record.get("strengths", {}).items():
        titles = {OURS: "five strengths", PAPERS: "five strengths, paper's way"}
        own = {title: case["runs"][way] for way, title in titles.items()}
        panels[name], units[name] = own, dict.fromkeys(own, case["runs"]["forward"])
    with _figure(path, len(panels), 1, height=3.2) as grid:
        for axes, (name, own) in zip(grid[0], panels.items(), strict=True):
            shown = {key: ratios(runs, units[name][key]) for key, runs in own.items() if key != "forward" and runs}
            for place, values in enumerate(shown.values()):
                axes.barh(place, median(values), color="C0", alpha=0.8)
                axes.plot([min(values), max(values)], [place, place], color="black", linewidth=1)
                axes.text(max(values) * 1.1, place, f"{median(values):,.0f}", verticalalignment="center", fontsize=8)
            axes.set_yticks(range(len(shown)), list(shown))
            axes.invert_yaxis()
            axes.set(title=name, xlabel="forward passes over the samples", xscale="log")
            axes.set_xlim(1, 10 * max(map(max, shown.values())))
            axes.minorticks_off()
            axes.grid(alpha=0.3, axis="x")


def _scaling(record: Mapping[str, Cases], path: Path) -> None:
    """Draw seconds and memory over what grows, one column per axis."""
    cases = record["scaling"]
    with _figure(path, len(cases), 2, height=2.9) as grid:
        for (upper, lower), (axis, case) in zip(zip(*grid, strict=True), cases.items(), strict=True):
            sizes = [int(size) for size in case["runs"]]
            for key, (label, marker) in LINES.items():
                _line(upper, sizes, [[run[key] for run in own] for own in case["runs"].values()], label, marker)
            _line(lower, sizes, [[run["beyond"] / 1e9 for run in own] for own in case["runs"].values()], None, "o")
            upper.set(ylabel="s", title=axis)
            upper.legend(fontsize="small")
            lower.set(ylabel="memory beyond, GB", xlabel=axis, ylim=(0, None))
            upper.set_yscale("log")
            for axes in (upper, lower):
                axes.set_xscale("log")
                axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
                axes.minorticks_off()
                axes.grid(alpha=0.3)


def _ranks(record: Mapping[str, Cases], path: Path) -> None:
    """Draw how much faster more processes are, beside what they could be at best."""
    cases = record["ranks"]
    with _figure(path, 1, 1, height=3.2) as ((axes,),):
        for (name, case), marker in zip(cases.items(), "osD^v<>", strict=False):
            sizes = [int(processes) for processes in case["runs"]]
            faster = [ratios(case["runs"]["1"], own) for own in case["runs"].values()]
            _line(axes, sizes, faster, name, marker)
        cores = max(case["about"]["processors"] for case in cases.values())
        axes.plot(
            sizes, [min(size, cores) for size in sizes], color="gray", linestyle="--", label=f"{cores} cores at best"
        )
        axes.set(xlabel="processes", ylabel="times faster than one", ylim=(0, None))
        axes.set_xticks(sizes)
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")


def _line(axes: Any, x: Sequence[float], values: Sequence[Sequence[float]], label: str | None, marker: str) -> None:
    """Draw medians with their ranges."""
    y = [median(own) for own in values]
    ranges = [
        [middle - min(own) for middle, own in zip(y, values, strict=True)],
        [max(own) - middle for middle, own in zip(y, values, strict=True)],
    ]
    axes.errorbar(x, y, yerr=ranges, label=label, marker=marker, markersize=4, capsize=2)


class _figure:  # noqa: N801 - used like a function
    """Lend a grid of axes ``[rows][columns]``, and save the figure in the end."""

    def __init__(self, path: Path, columns: int, rows: int, *, height: float) -> None:
        self.path, self.columns, self.rows, self.height = path, columns, rows, height

    def __enter__(self) -> Any:
        from matplotlib import rc_context
        from matplotlib.figure import Figure

        self.settings = rc_context({"svg.hashsalt": "verifix", "svg.fonttype": "path"})
        self.settings.__enter__()
        self.figure = Figure(figsize=(4.6 * self.columns, self.height * self.rows), layout="constrained")
        return self.figure.subplots(self.rows, self.columns, squeeze=False)

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.figure.savefig(self.path, format="svg", metadata={"Date": None, "Creator": None})
        self.settings.__exit__(None, None, None)

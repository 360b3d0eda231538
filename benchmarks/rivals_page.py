"""The tables and plots of docs/rivals.md, from the JSON files of the cells."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.cells import FOLDER, Cell, read
from benchmarks.grids import GRIDS, Grid
from benchmarks.methods import METHODS, Needs
from benchmarks.methods.base import Tool

PAGE, PLOTS = Path("docs/rivals.md"), Path("docs/rivals")
BEGIN, END = "<!-- begin of the tables; python -m benchmarks report -->", "<!-- end of the tables -->"
ABSENT, CANNOT = "absent", "cannot"
BOUND = tuple(name for name, entry in METHODS.items() if entry.needs is Needs.TRUTH)
"""What nobody could do with the same information: not compared for the best."""

OURS = tuple(name for name, entry in METHODS.items() if isinstance(entry.make, Tool))
FORMS = {
    "auto": "From the verified samples alone",
    "auto_unlabelled": "With training inputs",
    "auto_noisy": "With training inputs and their given labels",
}
"""The forms of the tool that are compared, by what they need."""

ENOUGH = 3
"""Seeds that an interval needs; by two, Student's t says nothing."""

Column = tuple[str, float, int]
Records = Mapping[Cell, Mapping[str, Any]]


def write_page() -> None:
    """Write everything between the marks of the page, and the plots."""
    records = load(GRIDS)
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables(GRIDS, records)}\n\n{END}{after}", encoding="utf-8")
    PLOTS.mkdir(exist_ok=True)
    for name, draw in plots(GRIDS, records):
        draw(PLOTS / name)


def load(grids: Mapping[str, Sequence[Grid]], folder: Path = FOLDER) -> Records:
    """Read the files of all cells that are there.

    Parameters
    ----------
    grids
        Task → its comparisons.
    folder
        Where the cells are.

    Returns
    -------
    Mapping
        Cell → its file.
    """
    cells = {cell for own in grids.values() for grid in own for cell in grid.cells()}
    return {cell: read(cell.path(folder)) for cell in sorted(cells) if cell.path(folder).exists()}


def tables(grids: Mapping[str, Sequence[Grid]], records: Records) -> str:
    """Render all comparisons as Markdown.

    Parameters
    ----------
    grids
        Task → its comparisons.
    records
        The cells that are there.

    Returns
    -------
    str
        One section per comparison.
    """
    sections = []
    for task, own in grids.items():
        sections += [_section(grid, task, number, records) for number, grid in enumerate(own)]
        if _begun(own[0], records):
            title = f"## {task}, {own[0].architecture}: cost ({_lower(own[0].title)})"
            sections.append(f"{title}\n\n![Gain over samples × passes](rivals/{task}-cost.svg)")
    looks = sum(record["looks_at_unseen"] for record in records.values())
    total = sum(1 for own in grids.values() for grid in own for _ in grid.cells())
    there = sum(cell in records for own in grids.values() for grid in own for cell in grid.cells())
    head = (
        f"{there:,} of {total:,} table entries are filled, from {len(records):,} files. Unseen samples were "
        f"looked at {looks:,} times, once for every run of a cell."
    )
    return "\n\n".join([head, _standing(grids, records), *sections])


def _standing(grids: Mapping[str, Sequence[Grid]], records: Records) -> str:
    """Compare each form of the tool with the others: with the best of every comparison, and with each over all."""
    head = (
        "Each form of verifix is compared with the best of the other methods *that need no more than it does*. The "
        "projection alone is a part of verifix and not among them. The best of the others is chosen by the same "
        "figures that it is judged by, which is in its favour."
    )
    parts = ["## Where verifix is ahead, and where it is not", head]
    for form in FORMS:
        places = _comparisons(form, grids, records)
        if places or form == "auto":
            parts += _form(form, places, records)
    return "\n\n".join(parts)


Places = dict[tuple[str, str, Column], tuple[Grid, dict[str, float]]]


def _form(form: str, places: Places, records: Records) -> list[str]:
    """Write the section of one form of the tool."""
    rows, verdicts = [], []
    others: dict[str, list[tuple[float, str]]] = {}
    for (task, architecture, (noise, rate, size)), (grid, means) in places.items():
        column = (noise, rate, size)
        against = {method: _apart(grid, column, form, method, records) for method in means if method != form}
        for method, apart in against.items():
            others.setdefault(method, []).append((statistics.fmean(apart), _verdict(apart)))
        best = max(_same_inputs(form, means), key=lambda method: (means[method], -list(METHODS).index(method)))
        verdicts.append(_verdict(against[best]))
        place = f"{task}, {architecture}, {noise} {100 * rate:g}%, {size:,} verified"
        figures = f"{means[form]:.1f} | {means[best]:.1f}, {METHODS[best].title}"
        rows.append(f"| {place} | {figures} | {_spread(against[best], '+.1f')} |")
    said = (
        f"Of {len(rows)} comparisons, verifix is ahead in {verdicts.count('ahead')} and behind in "
        f"{verdicts.count('behind')}. In the other {verdicts.count('open')}, the 95% interval of the paired difference "
        "contains 0, or there are fewer than three seeds."
    )
    first = [f"| comparison | `{form}` | best of the others | difference |", "| --- | --- | --- | --- |", *rows]
    second = [
        f"| method | needs | comparisons | `{form}` ahead | behind | neither | mean difference | worst for `{form}` |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        *(_against(method, others[method]) for method in METHODS if method in others),
    ]
    return [
        f"### {FORMS[form]}: `{form}`",
        said,
        "\n".join(first),
        f"`{form}` compared with each method, also those that need more, over all comparisons with that method:",
        "\n".join(second),
    ]


def _same_inputs(form: str, methods: Iterable[str]) -> list[str]:
    """Return those of some methods that need no more than a form of the tool, and are none themselves."""
    return [name for name in methods if name not in OURS and METHODS[name].needs.no_more_than(METHODS[form].needs)]


def _comparisons(form: str, grids: Mapping[str, Sequence[Grid]], records: Records) -> Places:
    """Return every different column with the means of its methods, as far as a form and two others have one."""
    found: Places = {}
    for grid in itertools.chain(*grids.values()):
        for column in _columns(grid):
            means = _means(grid, column, records)
            if form in means and len(_same_inputs(form, means)) > 1:
                found.setdefault((grid.task, grid.architecture, column), (grid, means))
    return found


def _apart(grid: Grid, column: Column, form: str, method: str, records: Records) -> list[float]:
    """Return how much more a form of the tool gets right than another method, seed by seed."""
    ours, theirs = (_accuracy(_own(grid, column, name, records)) for name in (form, method))
    return [mine - other for mine, other in zip(ours, theirs, strict=True)]


def _verdict(apart: Sequence[float]) -> str:
    """Say whether the tool is ahead or behind by paired differences, or neither."""
    if len(apart) < ENOUGH or abs(statistics.fmean(apart)) <= half_width(apart):
        return "open"
    return "ahead" if statistics.fmean(apart) > 0 else "behind"


def _against(method: str, found: Sequence[tuple[float, str]]) -> str:
    """Write the row of one of the others."""
    title = f"{METHODS[method].title} | {METHODS[method].needs.value}"
    differences, verdicts = zip(*found, strict=True)
    counts = " | ".join(str(verdicts.count(verdict)) for verdict in ("ahead", "behind", "open"))
    return f"| {title} | {len(found)} | {counts} | {statistics.fmean(differences):+.1f} | {min(differences):+.1f} |"


def _spread(values: Sequence[float], form: str = ".1f") -> str:
    """Write values: their mean with its 95% interval, or the values themselves where there are few."""
    if len(values) < ENOUGH:
        return " / ".join(f"{value:{form}}" for value in values)
    return f"{statistics.fmean(values):{form}} ± {half_width(values):.1f}"


def _section(grid: Grid, task: str, number: int, records: Records) -> str:
    columns = _columns(grid)
    many = "mean ± 95% interval" if len(grid.seeds) >= ENOUGH else "one figure per seed"
    seeds = f"{len(grid.seeds)} seeds, {many}" if len(grid.seeds) > 1 else "one seed"
    lines = [f"## {task}, {grid.architecture}: {_lower(grid.title)}", ""]
    lines += [f"Accuracy on unseen samples in percent; {_shared(grid)}{seeds}.", ""]
    lines += _accuracies(grid, columns, records)
    lines += ["", f"Files: `{_pattern(grid)}`."]
    plot = _plot_of(grid, task, number)
    if plot is not None and _begun(grid, records):
        lines += ["", f"![{grid.title}](rivals/{plot})"]
    return "\n".join(lines)


def _lower(title: str) -> str:
    return title[0].lower() + title[1:] if title[1:2] == " " or title[1:2].islower() else title


def _columns(grid: Grid) -> list[Column]:
    return [(noise, rate, size) for noise, rate in grid.noises for size in grid.sizes]


def _shared(grid: Grid) -> str:
    """Say what all columns have in common, which their headings leave out."""
    if len(grid.sizes) == 1:
        return f"{grid.sizes[0]:,} verified, "
    (noise, rate), *others = grid.noises
    return "" if others else f"{noise} {100 * rate:g}%, "


def _heading(column: Column, grid: Grid) -> str:
    noise, rate, size = column
    words = [f"{noise} {100 * rate:g}%"] if len(grid.noises) > 1 or len(grid.sizes) == 1 else []
    return ", ".join([*words, f"{size:,} verified"] if len(grid.sizes) > 1 else words)


def _pattern(grid: Grid) -> str:
    return f"{FOLDER}/{grid.task}/{grid.architecture}/NOISE/verified-N/seed-S/METHOD.json"


def _accuracies(grid: Grid, columns: Sequence[Column], records: Records) -> list[str]:
    names = [_heading(column, grid) for column in columns]
    lines = [f"| method | needs | {' | '.join(names)} | seconds | samples × passes | most GB |"]
    lines += [f"| --- |{' --- |' * (len(columns) + 4)}"]
    best = {column: _best(grid, column, records) for column in columns}
    for method in grid.methods:
        places = [_place(_own(grid, column, method, records), len(grid.seeds)) for column in columns]
        marked = [
            f"**{place}**" if method == best[column] else place for place, column in zip(places, columns, strict=True)
        ]
        entry = METHODS[method]
        places = [entry.title, entry.needs.value, *marked, *_costs(grid, method, records)]
        lines.append(f"| {' | '.join(places)} |")
    return lines


def _own(grid: Grid, column: Column, method: str, records: Records) -> list[Mapping[str, Any]]:
    noise, rate, size = column
    cells = [Cell(grid.task, grid.architecture, noise, rate, size, seed, method) for seed in grid.seeds]
    return [records[cell] for cell in cells if cell in records]


def _accuracy(own: Sequence[Mapping[str, Any]]) -> list[float]:
    """Return the accuracies of some cells, without those whose method could not run."""
    return [record["after"] for record in own if record["after"] is not None]


def _begun(grid: Grid, records: Records) -> bool:
    return any(cell in records for cell in grid.cells())


def _place(own: Sequence[Mapping[str, Any]], seeds: int) -> str:
    """Write the accuracies of some cells as `_spread` does; fewer seeds than there should be are said."""
    found = _accuracy(own)
    if not found:
        return CANNOT if own else ABSENT
    return _spread(found) if len(found) == seeds else f"{_spread(found)} ({len(found)} of {seeds})"


def half_width(values: Sequence[float]) -> float:
    """Return half the width of the 95% interval of a mean, by Student's t.

    Parameters
    ----------
    values
        Two or more.

    Returns
    -------
    float
        In the unit of the values.
    """
    from scipy.stats import t

    return float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def _best(grid: Grid, column: Column, records: Records) -> str | None:
    """Return the method with the highest mean, the bounds left out."""
    means = _means(grid, column, records)
    return max(means, key=lambda method: means[method]) if means else None


def _means(grid: Grid, column: Column, records: Records) -> dict[str, float]:
    """Return the mean accuracy of every method that has all seeds, the bounds left out."""
    means = {}
    for method in grid.methods:
        found = _accuracy(_own(grid, column, method, records))
        if len(found) == len(grid.seeds) and method not in BOUND:
            means[method] = statistics.fmean(found)
    return means


def _costs(grid: Grid, method: str, records: Records) -> list[str]:
    """Return the mean seconds and samples × passes of a method, and the most memory, over `_common` columns."""
    own = [record for column in _common(grid, records) for record in _own(grid, column, method, records)]
    own = [record for record in own if record["after"] is not None]
    if not own:
        return ["", "", ""]
    memory = [record["peak_gigabytes"] for record in own if record["peak_gigabytes"] is not None]
    seconds, runs = (statistics.fmean(record[key] for record in own) for key in ("seconds", "runs"))
    return [f"{seconds:.1f}", f"{runs:,.0f}", f"{max(memory):.1f}" if memory else ""]


def _common(grid: Grid, records: Records) -> list[Column]:
    """Return the columns that all methods have that have any; all columns if there are none."""

    def complete(method: str, column: Column) -> bool:
        return len(_accuracy(_own(grid, column, method, records))) == len(grid.seeds)

    columns = _columns(grid)
    begun = [method for method in grid.methods if any(complete(method, column) for column in columns)]
    common = [column for column in columns if all(complete(method, column) for method in begun)]
    return common or columns


def _plot_of(grid: Grid, task: str, number: int) -> str | None:
    """Return the name of a comparison's plot, if there is something to draw a curve over."""
    return f"{task}-{number}.svg" if len(grid.sizes) > 2 or _rates(grid) else None


def _rates(grid: Grid) -> bool:
    return len(grid.noises) > 2 and len({noise for noise, _ in grid.noises}) == 1


def plots(grids: Mapping[str, Sequence[Grid]], records: Records) -> Iterator[tuple[str, Any]]:
    """Yield the name of each plot, and what draws it into a file.

    Parameters
    ----------
    grids
        Task → its comparisons.
    records
        The cells that are there.

    Yields
    ------
    name : str
        Of the file.
    draw : callable
        Path → nothing.
    """
    for task, own in grids.items():
        for number, grid in enumerate(own):
            name = _plot_of(grid, task, number)
            if name is not None and _begun(grid, records):
                yield name, lambda path, grid=grid: _draw_curves(grid, records, path)
        if _begun(own[0], records):  # other comparisons lack some methods
            yield f"{task}-cost.svg", lambda path, grid=own[0]: _draw_costs(grid, records, path)


def _draw_curves(grid: Grid, records: Records, path: Path) -> None:
    """Draw accuracy over sizes, or over rates."""
    label = "share of wrong labels, %" if _rates(grid) else "verified samples"
    with _figure(path) as axes:
        for i, method in enumerate(grid.methods):
            points = []
            for column in _columns(grid):
                found = _accuracy(_own(grid, column, method, records))
                if found:
                    place = 100 * column[1] if _rates(grid) else column[2]
                    error = half_width(found) if len(found) >= ENOUGH else 0.0
                    points.append((place, statistics.fmean(found), error))
            if points:
                x, y, errors = zip(*points, strict=True)
                axes.errorbar(x, y, yerr=errors, label=METHODS[method].title, **_look(method, i))
        axes.set(xlabel=label, ylabel="accuracy on unseen samples, %")
        if not _rates(grid):
            axes.set_xscale("log")
            axes.set_xticks(grid.sizes, [f"{size:,}" for size in grid.sizes], minor=False)
            axes.minorticks_off()


def _draw_costs(grid: Grid, records: Records, path: Path) -> None:
    """Draw the gain over the samples × passes that it took, each a mean over `_common` columns."""
    common = _common(grid, records)
    with _figure(path) as axes:
        for i, (method, entry) in enumerate(METHODS.items()):
            found = [record for column in common for record in _own(grid, column, method, records)]
            found = [record for record in found if record["after"] is not None]
            if found and method != "nothing":
                gain = statistics.fmean(record["after"] - record["before"] for record in found)
                runs = statistics.fmean(max(record["runs"], 1) for record in found)
                axes.errorbar([runs], [gain], label=entry.title, **_look(method, i))
        axes.set(xlabel="samples × passes", ylabel="points gained on unseen samples", xscale="log")
        axes.axhline(0, color="gray", linewidth=0.8)


def _look(method: str, number: int) -> dict[str, Any]:
    """Return how a method is drawn: the tool stands out, and so do the bounds."""
    markers, colours = "osD^v<>pPX*hd8", [f"C{i}" for i in range(10)]
    if method in OURS:
        return {
            "color": "black",
            "linewidth": 2.4,
            "marker": "osD^"[OURS.index(method)],
            "capsize": 2,
            "zorder": 3,
        }
    dashed = method in BOUND or method == "nothing"
    look = {"linestyle": "--" if dashed else "-", "linewidth": 1.0, "capsize": 2, "alpha": 0.85}
    return look | {"color": colours[number % 10], "marker": markers[number % len(markers)], "markersize": 4}


class _figure:  # noqa: N801 - used like a function
    """Lend the axes of a plot, and save it in the end: the same bytes for the same points."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Any:
        import matplotlib as mpl
        from matplotlib.figure import Figure

        self.settings = mpl.rc_context({"svg.hashsalt": "verifix", "font.size": 9})
        self.settings.__enter__()
        self.figure = Figure(figsize=(8, 4.4), layout="constrained")
        self.axes = self.figure.subplots()
        self.axes.grid(alpha=0.3)
        return self.axes

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.figure.legend(loc="outside right upper", fontsize=8, frameon=False)
            self.figure.savefig(self.path, metadata={"Date": None, "Creator": None})
        self.settings.__exit__(None, None, None)

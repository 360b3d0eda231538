"""Charts with axes, as SVG for a page: its text is text, its colours are the page's own, in light and in dark.

Nothing that a user named is drawn, so that no name can be read as mathematics or markup; it may stand in a description.
Bars and tables, which need no axes, are in the template.
"""

from __future__ import annotations

import io
import math
import re
import zlib
from collections.abc import Sequence
from typing import Any

import torch
from markupsafe import Markup, escape

from verifix.evaluation.metrics import Bin
from verifix.projection import importance
from verifix.recipe.candidates import Strength
from verifix.recipe.decision import Point, spelled
from verifix.report.formatting import printable

INK, MUTED, LINE, BEFORE, AFTER, SOFT = "#000001", "#000002", "#000003", "#000004", "#000005", "#000006"
VARIABLES = {INK: "ink", MUTED: "muted", LINE: "line", BEFORE: "before", AFTER: "after", SOFT: "soft"}
"""Colours that matplotlib writes, and the variables of the style sheet that take their place."""

SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "verifix",
    "font.size": 10,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.minor.visible": False,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "legend.frameon": False,
}

MOST_TICKS = 6
"""Strengths up to which each has its tick; of more, powers of ten have one."""

SPECTRUM_POINTS = 160
"""Eigenvalues that are drawn of a layer, evenly spaced on the logarithmic axis of their order."""


def gain(estimate: float, low: float | None, high: float | None) -> Markup:
    """Draw the gain and its interval against no gain at all."""

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.axvline(0, color=MUTED, linewidth=1, linestyle=(0, (4, 3)))
        if low is not None and high is not None:
            axes.plot([low, high], [0, 0], color=AFTER, linewidth=5, alpha=0.35, solid_capstyle="round")
        axes.plot(estimate, 0, "o", color=AFTER, markersize=8)
        axes.set(yticks=[0], yticklabels=["Gain"], ylim=(-0.7, 0.7), xlabel="points")
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.margins(x=0.15)
        ticks = [_plain_sign(tick) for tick in axes.get_xticks()]
        axes.set_xticks(axes.get_xticks(), ticks)
        axes.set_xlim(*_with_zero((low, high, estimate)))

    return _chart(draw, (4.4, 1.2), f"Gain of {estimate:+.1f} points with its interval, and no gain for comparison")


def _plain_sign(tick: float) -> str:
    return f"{tick:+g}".replace("-", "−") if tick else "0"


def _with_zero(values: Sequence[float | None]) -> tuple[float, float]:
    """Return limits of an axis that holds all values and zero."""
    known = [value for value in values if value is not None] + [0.0]
    margin = 0.15 * max(max(known) - min(known), 0.5)
    return min(known) - margin, max(known) + margin


def curve(points: Sequence[Point], chosen: Strength | None, of: str) -> Markup:
    """Draw a curve of strengths on a logarithmic axis, with the chosen one and no change.

    Parameters
    ----------
    points
        Points of a choice; the first is no change, and each of the others has one number as its strength.
    chosen
        The strength that was chosen.
    of
        "loss", in nats, or "score", drawn in percent.

    Returns
    -------
    Markup
        The chart.
    """
    error, scale = {"loss": ("standard_error", 1.0), "score": ("score_error", 100.0)}[of]
    tried = [point for point in points if point.strength is not None]
    x, y = [point.strength for point in tried], [scale * getattr(point, of) for point in tried]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.errorbar(
            x, y, yerr=[scale * getattr(p, error) for p in tried], color=AFTER, marker="o", capsize=2.5, elinewidth=1
        )
        for point in points:
            if point.strength is None:
                axes.axhline(scale * getattr(point, of), color=BEFORE, linestyle=(0, (5, 3)), linewidth=1.4)
        for place, height in zip(x, y, strict=True):
            if place == chosen:
                axes.axvline(place, color=MUTED, linestyle=":", linewidth=1)
                axes.plot(place, height, "o", markersize=12, markerfacecolor="none", markeredgecolor=INK)
        axes.set(xscale="log", xlabel="strength α", ylabel={"loss": "loss, nats", "score": "score, %"}[of])
        _plain_decades(axes.xaxis)
        if len(x) <= MOST_TICKS:
            axes.set_xticks(x, [spelled(place) for place in x])
        axes.grid(axis="y")

    name = {"loss": "Cross-fitted loss", "score": "Cross-fitted score"}[of]
    mark = "no strength chosen" if chosen is None else f"chosen: {spelled(chosen)}"
    return _chart(draw, (4.4, 2.3), f"{name} over the strength of the projection, {len(tried)} strengths; {mark}")


def reliability(bins: Sequence[Bin], title: str, colour: str) -> Markup:
    """Draw how often the network is correct, by its confidence, and how many samples that is.

    Parameters
    ----------
    bins
        Bins of confidence, in order.
    title
        What the chart is called.
    colour
        One of the placeholders of this file.

    Returns
    -------
    Markup
        The chart.
    """
    full = [b for b in bins if b.samples and b.accuracy is not None]
    middles, widths = [50 * (b.low + b.high) for b in full], [90 * (b.high - b.low) for b in full]
    heights = [100 * (b.accuracy or 0) for b in full], [b.samples for b in full]

    def draw(figure: Any) -> None:
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        top.plot([0, 100], [0, 100], color=MUTED, linestyle=(0, (4, 3)), linewidth=1, zorder=3)
        for axes, height in zip((top, bottom), heights, strict=True):
            axes.bar(
                middles,
                height,
                widths,
                color=colour,
                alpha=0.75 if axes is top else 0.4,
            )
            axes.grid(axis="y")
            axes.set_axisbelow(True)
        top.set(ylim=(0, 100), xlim=(0, 100), ylabel="% correct", yticks=range(0, 101, 25))
        bottom.set(xlabel="confidence, %", ylabel="samples", xticks=range(0, 101, 20))

    return _chart(draw, (4.4, 2.7), f"{title}: accuracy by confidence, {len(full)} bins with samples")


def spectrum(eigenvalues: Sequence[float], alpha: float | None, layer: str) -> Markup:
    """Draw a layer's eigenvalues, the importance that a strength gives them, and where it falls below one half.

    Parameters
    ----------
    eigenvalues
        Of the layer's activation space, descending.
    alpha
        The strength α of the projection; None if the layer has none.
    layer
        What the layer is called, for those who do not see the chart.

    Returns
    -------
    Markup
        The chart.
    """
    positive = [r for r in eigenvalues if r > 0]
    order = thinned(len(positive))
    values = [positive[i - 1] for i in order]

    def draw(figure: Any) -> None:
        axes = figure.subplots()
        axes.plot(order, values, color=INK)
        axes.set(xscale="log", yscale="log", xlabel="direction, by size", ylabel="eigenvalue r")
        axes.set_xlim(0.8, 1.25 * order[-1])
        for axis in (axes.xaxis, axes.yaxis):
            _plain_decades(axis)
        if alpha is not None:
            _importance(axes, order, values, alpha, kept(positive, alpha))

    return _chart(draw, (4.4, 2.9), f"Spectrum of {layer}: {len(positive)} eigenvalues")


def _importance(axes: Any, order: Sequence[int], values: Sequence[float], alpha: float, above: int) -> None:
    beside = axes.twinx()
    beside.plot(order, importance(torch.tensor(values, dtype=torch.float64), alpha).tolist(), color=AFTER)
    beside.set(ylim=(0, 1.02), ylabel="importance λ", yticks=[0, 0.5, 1])
    beside.yaxis.label.set_color(AFTER)
    beside.spines["right"].set_visible(True)
    axes.axhline(1 / (alpha + 1), color=BEFORE, linestyle=(0, (5, 3)), linewidth=1.2)
    if above:
        axes.axvspan(0.8, above + 0.5, color=SOFT, zorder=0)


def kept(eigenvalues: Sequence[float], alpha: float) -> int:
    """Return how many directions have an importance of one half or more, which is r ≥ 1 / (α + 1)."""
    return sum(r >= 1 / (alpha + 1) for r in eigenvalues)


def thinned(length: int) -> list[int]:
    """Return up to `SPECTRUM_POINTS` orders from 1 to `length`, evenly spaced on a logarithmic axis."""
    if length <= SPECTRUM_POINTS:
        return list(range(1, length + 1))
    steps = (length ** (i / (SPECTRUM_POINTS - 1)) for i in range(SPECTRUM_POINTS))
    return sorted({round(step) for step in steps})


def _plain_decades(axis: Any) -> None:
    """Write powers of ten with raised digits, without the markup of mathematics."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(numticks=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: _decade(value)))
    axis.set_minor_locator(NullLocator())


def _decade(value: float) -> str:
    power = round(math.log10(value)) if value > 0 else 0
    if 0 <= power <= 3:
        return f"{10**power:,}"
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _chart(draw: Any, inches: tuple[float, float], label: str) -> Markup:
    """Draw on a fresh figure, and return it as a part of a page."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(SETTINGS)
        figure = Figure(figsize=inches, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
            patch.set_visible(False)
        buffer = io.StringIO()
        absent = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=absent)
    return _for_page(buffer.getvalue(), label)


def _for_page(svg: str, label: str) -> Markup:
    """Make a file of matplotlib a part of a page: no declarations, names of its own, the page's font and colours."""
    label = printable(label)
    box = re.search(r'viewBox="([^"]+)"', svg)
    body = svg.partition("<svg")[2].partition(">")[2].rpartition("</svg>")[0]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.S)
    body = _own_names(body.replace("xlink:href", "href"), f"c{zlib.crc32(f'{label}{body}'.encode()):08x}-")
    body = re.sub(r"font-family: [^;\"]+; ", "", body)
    body = re.sub(r"\d+\.\d{3,}", lambda match: f"{float(match[0]):.2f}", body)
    for colour, variable in VARIABLES.items():
        body = body.replace(colour, f"var(--{variable})")
    body = re.sub(r"\s*\n\s*", "\n", body)
    head = f'<svg class="chart" role="img" viewBox="{box[1] if box else ""}" aria-label="{escape(label)}">'
    return Markup(f"{head}{body}</svg>")  # noqa: S704  # written by matplotlib from numbers and the words of this file


def _own_names(body: str, prefix: str) -> str:
    """Drop the names that nothing refers to, and give the others a prefix, because a page holds several charts."""
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda match: f' id="{prefix}{match[1]}"' if match[1] in used else "", body)
    return re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", body)

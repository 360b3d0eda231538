"""Results as a part of a notebook's page: what came out, a table, a chart, and all else on request."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any

from markupsafe import Markup

from verifix.correction import Correction
from verifix.errors import UsageError
from verifix.evaluation.comparison import Comparison, signed
from verifix.evaluation.score import Score
from verifix.model.class_names import named
from verifix.proof import Proof
from verifix.recipe.decision import spelled
from verifix.recipe.summary import headline, stage_line
from verifix.report import charts
from verifix.report.formatting import printable
from verifix.report.page import write_report
from verifix.report.plots import strengths
from verifix.report.result import result_of

MOST_ROWS = 10
"""Classes that a table shows: those of which most answers changed, or with the lowest accuracy."""

STYLE = (
    "max-width:46rem;--ink:var(--jp-content-font-color1,#1c1f24);--muted:var(--jp-content-font-color2,#5a616c);"
    "--line:var(--jp-border-color2,#dfe2e6);--before:#b4541a;--after:#1b6a8c;--soft:#f0f2f4"
)
"""The colours that the charts of the report ask for, as far as a notebook's theme has them."""

ALIGNED = "text-align:left;padding:.2em 1em .2em 0"


def html(result: Any) -> Markup:
    """Return a result for a notebook; see `Presented._repr_html_`."""
    return Markup('<div class="verifix" style="{}">{}</div>').format(STYLE, _parts(result))


@singledispatch
def _parts(result: object) -> Markup:
    raise TypeError(f"a {type(result).__name__} cannot be shown")


@_parts.register
def _of_correction(correction: Correction) -> Markup:
    points = strengths(correction)
    rows = [(stage, spelled(choice.strength), stage_line(stage, choice).removeprefix(f"{stage}: "))
            for stage, choice in correction.choices.items()]  # fmt: skip
    drawn = charts.curve(points, correction.alpha, "score") if points else Markup("")
    told = _table(("stage", "strength", "why"), rows)
    next_step = "correction.prove() measures the gain on held-out samples." if correction.changed else ""
    below = Markup("<p>{}</p>").format(correction.caution) if correction.caution else Markup("")
    return _page(headline(correction), below + told, drawn, [*correction.notes, next_step],
                 correction.summary(verbose=True))  # fmt: skip


@_parts.register
def _of_proof(proof: Proof) -> Markup:
    return _compared(proof.comparison, proof.class_names, proof.note, proof.summary())


@_parts.register
def _of_comparison(comparison: Comparison) -> Markup:
    return _compared(comparison, comparison.class_names, "", comparison.summary())


def _compared(comparison: Comparison, names: Sequence[str] | None, note: str, whole: str) -> Markup:
    before, after, gain = comparison.before, comparison.after, comparison.gain
    rows = [
        ("accuracy", f"{before.accuracy:.1f}%", f"{after.accuracy:.1f}%", signed(gain.estimate)),
        *(
            (
                named(row.label, names),
                f"{row.before:.1f}%",
                f"{row.after:.1f}%",
                f"{row.fixed} fixed, {row.broken} broken",
            )
            for row in sorted(comparison.per_class, key=lambda row: -row.fixed - row.broken)[:MOST_ROWS]
            if row.before is not None and row.after is not None and row.fixed + row.broken
        ),
    ]
    table = _table(("", "before", "after", "difference"), rows)
    drawn = charts.gain(gain.estimate, gain.low, gain.high)
    return _page(comparison.sentence(), table, drawn, [*comparison.independence(), note], whole)


@_parts.register
def _of_score(score: Score) -> Markup:
    known = sorted((row for row in score.per_class if row.accuracy is not None), key=lambda row: row.accuracy or 0.0)
    rows = [
        (named(row.label, score.class_names), f"{row.accuracy:.1f}%", str(row.samples)) for row in known[:MOST_ROWS]
    ]
    first, *others = score.summary().split("\n")
    return _page(first, _table(("class", "correct", "samples"), rows), Markup(""), others, "")


def _page(sentence: str, table: Markup, chart: Markup, notes: Sequence[str], whole: str) -> Markup:
    """Put the parts together; whatever is empty is left out."""
    parts = [Markup("<p><strong>{}</strong></p>").format(printable(sentence)), table]
    parts += [Markup('<div style="max-width:26rem">{}</div>').format(chart)] if chart else []
    parts += [Markup("<p><small>{}</small></p>").format(printable(note)) for note in notes if note]
    if whole:
        parts.append(Markup("<details><summary>Details</summary><pre>{}</pre></details>").format(printable(whole)))
    return Markup("").join(parts)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """Return a table; nothing if it has no rows."""
    if not rows:
        return Markup("")
    cell = Markup('<{0} style="{1}">{2}</{0}>')
    top = Markup("").join(cell.format("th", ALIGNED, name) for name in head)
    lines = [Markup("").join(cell.format("td", ALIGNED, printable(value)) for value in row) for row in rows]
    body = Markup("").join(Markup("<tr>{}</tr>").format(line) for line in lines)
    return Markup("<table><thead><tr>{}</tr></thead><tbody>{}</tbody></table>").format(top, body)


def report(result: Any, path: str | Path, *, force: bool) -> Path:
    """Write the report of a correction, or of a proof and its correction; see `Presented.report`."""
    if isinstance(result, Correction):
        return write_report(path, result_of(result), force)
    correction = getattr(result, "correction", None)
    if correction is None:
        raise UsageError(
            f"a {type(result).__name__} alone has no report; write that of correction.prove(), or of the correction"
        )
    return write_report(path, result_of(correction, result), force)

"""Results drawn with matplotlib, on axes of the user's own or on new ones."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from verifix.correction import Correction
from verifix.evaluation.comparison import Comparison, signed
from verifix.evaluation.score import Score
from verifix.model.class_names import named
from verifix.proof import Proof
from verifix.recipe.decision import Point, spelled

BEFORE, AFTER, QUIET = "tab:orange", "tab:blue", "0.5"


def plot(result: Any, ax: Any = None) -> Any:
    """Draw a result; see `Presented.plot`."""
    if ax is None:
        from matplotlib import pyplot

        _, ax = pyplot.subplots(figsize=(5, 3.2), layout="constrained")
    _draw(result, ax)
    return ax


@singledispatch
def _draw(result: object, _ax: Any) -> None:
    raise TypeError(f"a {type(result).__name__} cannot be drawn")


@_draw.register
def _of_correction(correction: Correction, ax: Any) -> None:
    """Draw the curve of the projection; without one, the paths that were tried; without these, the layers."""
    points = strengths(correction)
    tried = [path for path in correction.paths if path.point is not None]
    if points:
        _curve(correction, points, ax)
    elif len(tried) > 1:
        gains = [path.point.loss_gain for path in tried[1:] if path.point is not None]
        errors = [path.point.standard_error for path in tried[1:] if path.point is not None]
        _rows(ax, [path.name for path in tried[1:]], gains, errors)
        ax.set(xlabel="loss lower by, nats (cross-fitted)", title="Paths of stages")
    else:
        changed = [layer for layer in correction.layers if layer.relative_change is not None]
        _rows(ax, [layer.parameter for layer in changed], [100 * (layer.relative_change or 0.0) for layer in changed])
        ax.set(xlabel="changed by, %", title="Layers")


def strengths(correction: Correction) -> list[Point]:
    """Return the points of the projection's curve, no change first; none if no single strengths were tried."""
    points = [p for p in correction.curve if p.strength is None or not isinstance(p.strength, tuple)]
    return points if len(points) > 1 else []


def _curve(correction: Correction, points: list[Point], ax: Any) -> None:
    tried = [point for point in points if point.strength is not None]
    x, y = [point.strength for point in tried], [point.score for point in tried]
    ax.errorbar(x, y, yerr=[p.score_error for p in tried], color=AFTER, marker="o", markersize=4, capsize=2)
    for point in points:
        if point.strength is None:
            ax.axhline(point.score, color=BEFORE, linestyle="--", label="no change")
        elif point.strength == correction.alpha:
            label = f"chosen: {spelled(point.strength)}"
            ax.plot(point.strength, point.score, "o", markersize=11, fillstyle="none", color=AFTER, label=label)
    ax.set(xscale="log", xlabel="strength α", ylabel="score (cross-fitted)", title="Strength of the projection")
    ax.legend(frameon=False)


@_draw.register
def _of_proof(proof: Proof, ax: Any) -> None:
    _of_comparison(proof.comparison, ax)


@_draw.register
def _of_comparison(comparison: Comparison, ax: Any) -> None:
    """Draw the gain with its interval, beside no gain."""
    gain = comparison.gain
    ax.axvline(0, color=QUIET, linestyle="--")
    ax.errorbar([gain.estimate], [0], xerr=[[gain.estimate - gain.low], [gain.high - gain.estimate]], fmt="o",
                color=AFTER, capsize=4)  # fmt: skip
    ax.set(yticks=[], ylim=(-1, 1), xlabel=f"gain in accuracy, points, with its {gain.level:.0%} interval")
    before, after = comparison.before.accuracy, comparison.after.accuracy
    ax.set_title(f"{comparison.verdict}: {before:.1f}% → {after:.1f}% ({signed(gain.estimate)})")


@_draw.register
def _of_score(score: Score, ax: Any) -> None:
    """Draw the accuracy of each class."""
    rows = [row for row in score.per_class if row.accuracy is not None]
    _rows(ax, [named(row.label, score.class_names) for row in rows], [row.accuracy or 0.0 for row in rows])
    ax.axvline(score.accuracy, color=QUIET, linestyle="--")
    ax.set(xlim=(0, 100), xlabel="correct, %", title=f"{score.accuracy:.1f}% of {score.samples:,} samples correct")


def _rows(ax: Any, names: list[str], values: list[float], errors: list[float] | None = None) -> None:
    """Draw one horizontal bar for each name, the first on top; a name is text and never mathematics."""
    places = range(len(names))
    ax.barh(places, values, xerr=errors, color=AFTER, alpha=0.8)
    ax.set_yticks(places, [name.replace("$", r"\$") for name in names])
    ax.invert_yaxis()

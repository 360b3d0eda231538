"""What a recipe did to each layer, and lines for reading about its stages and layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from verifix.errors import first_of, printable
from verifix.model.gradients import unreached
from verifix.recipe.candidates import Strength
from verifix.recipe.context import Context
from verifix.recipe.decision import Choice, Point, spelled
from verifix.recipe.paths import Path

LayerStatus = Literal["corrected", "kept", "skipped", "unused"]

PRUNED = 0.2
"""Share of zeros from which a weight counts as pruned."""


@dataclass(frozen=True)
class LayerReport:
    """What became of one parameter of two or more dimensions.

    Attributes
    ----------
    parameter
        Qualified name.
    kind
        Layer kind; empty if no layer uses it.
    status
        "corrected", "kept" (no change won), "skipped" or "unused".
    reason
        Why it was skipped.
    rows
        Input rows seen, per group.
    effective_rank
        1 / ‖C‖²_F: how many directions the verified samples excite, mean over groups with any; None if not corrected.
    relative_change
        ‖W' − W‖_F / ‖W‖_F; None if not corrected.
    """

    parameter: str
    kind: str
    status: LayerStatus
    reason: str = ""
    rows: int = 0
    effective_rank: float | None = None
    relative_change: float | None = None

    @property
    def line(self) -> str:
        """The report on one line."""
        name = printable(self.parameter, one_line=True)
        if self.status != "corrected":
            return f"{name}: {self.status}{': ' * bool(self.reason)}{self.reason}"
        change = "" if self.relative_change is None else f", changed by {self.relative_change:.1%}"
        if self.effective_rank is None:  # no layer, or a part of one, that a stage has changed all the same
            return f"{name}: {self.kind or 'no layer'}{change}"
        rank = f"effective rank {self.effective_rank:.1f}"
        return f"{name}: {self.kind}, {self.rows} rows, {rank}{change}"


def path_lines(paths: Sequence[Path], reason: str) -> list[str]:
    """Return what was decided and why, then every path, one line each; nothing for one path besides no change."""
    if len(paths) <= 2:
        return []
    width = max(len(path.name) for path in paths if path.point is not None)
    tried = [f"  {path.name:{width}}  {_figures(path.point)}" for path in paths if path.point is not None]
    return [reason, *tried, *(f"  {' → '.join(p.stages)}: {p.reason}" for p in paths if p.point is None)]


def _figures(point: Point) -> str:
    gain = f"{point.loss_gain:+.4f} ± {point.standard_error:.4f}"
    return f"loss {point.loss:.4f}  lower by {gain}  score {point.score:.4f}"


def stage_lines(stage: str, choice: Choice) -> list[str]:
    """Return what a stage chose and why, then its curve, one line per point."""
    given = f" (α = {spelled(choice.strength)})" if choice.strength is not None and not choice.points else ""
    timed = choice.seconds is not None and choice.points
    times = f"; took {choice.seconds:.1f} s, estimated {choice.estimated or 0:.1f} s" if timed else ""
    points = [f"  {_point_line(point, choice.strength)}" for point in choice.points]
    return [f"{stage}: {choice.told}{given}{times}", *points]


def _point_line(point: Point, chosen: Strength | None) -> str:
    name = spelled(point.strength)
    mark = "  ← chosen" if point.strength == chosen else ""
    return f"{name:>10}  {_figures(point)}{mark}"


def remarks_on_zeros(original: Mapping[str, Tensor], corrected: Mapping[str, Tensor]) -> list[str]:
    """Name weights that had many zeros, as pruned ones have, and have fewer now."""
    shares = {name: [float((x[name] == 0).double().mean()) for x in (original, corrected)] for name in corrected}
    filled = {
        name: share
        for name, share in shares.items()
        if share[0] >= PRUNED and share[1] < share[0] and original[name].ndim > 1
    }
    if not filled:
        return []
    few = first_of(f"{name!r} ({100 * a:.0f}% before, {100 * b:.0f}% now)" for name, (a, b) in filled.items())
    return [
        f"Entries that were exactly 0, as after pruning, are so no longer: {few}. A correction is no sparse "
        "update; exclude= keeps layers as they are."
    ]


def remarks_on_gradients(work: nn.Module, whole: Context) -> list[str]:
    """Name the layers that are used, and that no gradient reached in a stage that asked for it."""
    used = {account.parameter for account in whole.run.collected.accounts if account.status != "unused"}
    names = [name for name in unreached(work) if name in used]
    if not names:
        return []
    them = "it" if len(names) == 1 else "them"
    return [
        f"No gradient reaches {first_of(map(repr, names))}, although the model uses {them} (detached, under no_grad, "
        "or without a part in the logits): stages that follow gradients leave that as it is."
    ]

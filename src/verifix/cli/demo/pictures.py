"""The pictures of the demonstrations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor, nn

from verifix.correction import Correction
from verifix.storage.atomic import write_atomically

BEFORE, AFTER, GREY = "#b5482f", "#1f6f8b", "#6b6b6b"


def strength_curve(correction: Correction, folder: Path) -> str:
    """Draw the strength curve with the standard error of each point, and return the picture's name."""
    no_change, *points = correction.curve
    figure = Figure(figsize=(7, 6), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    alphas = [p.strength for p in points]
    top.errorbar(
        alphas,
        [p.loss for p in points],
        yerr=[p.standard_error for p in points],
        color=AFTER,
        marker="o",
        capsize=3,
        label="corrected, ± paired standard error",
    )
    top.axhline(no_change.loss, color=BEFORE, linestyle="--", label="no change")
    top.set_ylabel("cross-fitted loss")
    bottom.plot(alphas, [100 * p.score for p in points], color=AFTER, marker="o")
    bottom.axhline(100 * no_change.score, color=BEFORE, linestyle="--")
    bottom.set(xscale="log", xlabel="strength α", ylabel="cross-fitted % right")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
        if correction.alpha is not None:
            axes.axvline(correction.alpha, color=GREY, linestyle=":", label=f"chosen, α = {correction.alpha:.4g}")
    top.legend(frameon=False)
    figure.suptitle("Strength of the projection\n(selection scores: they chose α, so they overstate the gain)")
    return _save(figure, folder, "strength-curve.png")


def digits_set_right(images: Tensor, given: Tensor, before: Tensor, after: Tensor, total: int, folder: Path) -> str:
    """Draw training digits whose memorised wrong label the correction has put right.

    Parameters
    ----------
    images
        ``[n, 8, 8]``.
    given, before, after
        Given label and both predictions, ``[n]``.
    total
        How many there are in all.
    folder
        Where to.

    Returns
    -------
    str
        The picture's name.
    """
    columns = 5
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(9, 0.6 + 1.75 * rows), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.axis("off")
    for axes, image, g, b, a in zip(figure.axes, images, given, before, after, strict=False):
        axes.imshow(image.numpy(), cmap="gray_r")
        axes.set_title(f"given {int(g)}, before {int(b)}\nafter {int(a)}", fontsize=9)
    figure.suptitle(f"Training digits with a wrong label, set right by the correction: {len(images)} of {total}")
    return _save(figure, folder, "digits-set-right.png")


@torch.no_grad()
def decision_boundaries(
    panels: Sequence[tuple[str, nn.Module, Tensor]], points: Tensor, folder: Path, steps: int = 240
) -> str:
    """Draw what networks on the plane decide, side by side.

    Parameters
    ----------
    panels
        Title, network and the labels to colour the points by, for each panel.
    points
        The training points, ``[n, 2]``.
    folder
        Where to.
    steps
        Grid points per axis.

    Returns
    -------
    str
        The picture's name.
    """
    reach = 1.1 * float(points.abs().max())
    line = torch.linspace(-reach, reach, steps)
    grid = torch.cartesian_prod(line, line)
    figure = Figure(figsize=(4 * len(panels), 4.9), layout="constrained")
    for axes, (title, model, labels) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        share = model(grid).softmax(dim=1)[:, 1].reshape(steps, steps).T.numpy()
        axes.imshow(
            share, extent=(-reach, reach, -reach, reach), origin="lower", cmap="RdBu", alpha=0.5, vmin=0, vmax=1
        )
        axes.contour(line.numpy(), line.numpy(), share, levels=[0.5], colors="black", linewidths=0.8)
        axes.scatter(*points.T.numpy(), c=labels.numpy(), cmap="RdBu", s=9, edgecolors="white", linewidths=0.2)
        axes.set(title=title, xticks=[], yticks=[])
    return _save(figure, folder, "decision-boundaries.png")


def _save(figure: Figure, folder: Path, name: str) -> str:
    FigureCanvasAgg(figure)
    write_atomically(folder / name, lambda path: figure.savefig(path, dpi=130, format="png"), force=True)
    return name

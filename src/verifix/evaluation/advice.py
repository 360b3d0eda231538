"""What to do after a correction that was not written: more samples, of which classes, another recipe, how long."""

from __future__ import annotations

from collections.abc import Sequence

from verifix.evaluation.comparison import Comparison, rounded
from verifix.evaluation.power import samples_for
from verifix.model.class_names import named
from verifix.progress import duration
from verifix.recipe.paths import Path

FEW = 3
"""Classes that are named of those with the fewest samples."""

RARE = 0.5
"""A class has few samples if it has less than this share of what all would have if they had the same number."""


def more_samples(comparison: Comparison | None, paths: Sequence[Path], samples: int | None) -> str:
    """Say how many more samples would show the gain that was seen, if it is real.

    Parameters
    ----------
    comparison
        The proof; None if there is none.
    paths
        What was tried, no change first, with cross-fitted scores.
    samples
        Verified samples; None if that is not known.

    Returns
    -------
    str
        What to do.
    """
    if comparison is not None and comparison.gain.estimate > 0 and comparison.needed():
        return " ".join(comparison.needed())
    if comparison is not None:
        return "More samples of the same kind are not known to help: the proof shows no gain."
    points = [path.point for path in paths if path.point is not None]
    if samples is None or not points:
        return "Verify more samples and run it again: with more of them a smaller gain can be seen."
    best = min(points[1:], key=lambda point: point.loss, default=None)
    needed = None if best is None else samples_for(best.score - points[0].score, best.score_error, samples)
    if needed is None:
        return "More samples of the same kind are not known to help: no path that was tried raised the accuracy."
    return f"Verify about {rounded(needed - samples)} more samples to show the gain of the best path, if it is real."


def rare_classes(counts: Sequence[int], names: Sequence[str] | None) -> str:
    """Name the classes with the fewest verified samples.

    Parameters
    ----------
    counts
        Samples of each class.
    names
        Their names, if they are known.

    Returns
    -------
    str
        One sentence; empty if no class has far fewer samples than others.
    """
    few = [
        i for i in sorted(range(len(counts)), key=counts.__getitem__) if counts[i] < RARE * sum(counts) / len(counts)
    ]
    if not few:
        return ""
    listed = ", ".join(f"{named(i, names)} ({counts[i]:,})" for i in few[:FEW])
    more = f" and {len(few) - FEW} more classes" if len(few) > FEW else ""
    return (
        f"Few verified samples so far: {listed}{more}. Samples that are added for a class are no random draw: say "
        "--drawn by-class, and give --class-shares."
    )


def other_recipe(recipe: str, seconds: float | None) -> str:
    """Name the recipe to try next, and how long it takes with its proof, if that is known.

    Parameters
    ----------
    recipe
        The one that was used.
    seconds
        What the projection alone takes with its proof; None if that is not known.

    Returns
    -------
    str
        One sentence; empty if neither of the two named recipes was used.
    """
    if recipe == "verifix":
        return "Or try --recipe auto, which also refits and trains; it takes several times as long (see --budget)."
    if recipe != "auto":
        return "Or try --recipe auto, which tries several paths of stages."
    time = "" if seconds is None else f" in about {duration(seconds)}"
    return f"Or try --recipe verifix, which chooses among fewer corrections{time}."

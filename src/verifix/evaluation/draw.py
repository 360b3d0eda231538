"""How the samples were drawn on which a gain is measured, and what the gain then means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from verifix.errors import DataError, UsageError

SCORES_OF = {
    "by-class": "were drawn by class, so unweighted accuracies of them are not those on the data",
    "suspects": "were drawn because they looked wrong, so accuracies of them are far lower, and gains larger, than on "
    "the data",
    "mixed": "are a random sample beside selected ones, so accuracies of all of them are not those on the data",
}
"""What the scores of samples that are no random sample are not, by the way in which they were drawn."""


def check_drawn(drawn: str | None, *, weighted: bool, shares: bool = False) -> None:
    """Refuse a proof on samples that are no random sample, unless each counts as much as it stands for.

    Parameters
    ----------
    drawn
        How they were drawn; None if nobody said.
    weighted
        Whether each has a weight of its own.
    shares
        Whether the shares of the classes are known.

    Raises
    ------
    UsageError
        Shares mend a draw by class, but no draw of suspects: within a class, these are not a random sample either.
    """
    if drawn == "by-class" and not (weighted or shares):
        raise UsageError(
            "drawn is 'by-class', and the gain on such samples is not that on the data; give the share of each class "
            "in the data (--class-shares; in Python weights=verifix.class_weights(labels, shares)), or test samples "
            "that were drawn at random (--test)"
        )
    if drawn == "suspects" and not weighted:
        raise UsageError(
            "drawn is 'suspects', and the gain on such samples is larger than that on the data; give test samples that "
            "were drawn at random (--test), or one weight per sample, the inverse of its probability to be drawn "
            "(--weights-file; in Python weights=)"
        )
    if drawn == "mixed" and not weighted:
        raise UsageError(
            "drawn is 'mixed', and only samples that were drawn at random prove a gain; give one weight per sample, "
            "0 for the others (--weights-file; in Python weights=; records of verifix review have them), or test "
            "samples that were drawn at random (--test)"
        )


def judged(drawn: str | None, weights: Any, indices: Sequence[int], count: int) -> list[int]:
    """Return which samples a gain is measured on: of a mixed set, those that were drawn at random.

    Parameters
    ----------
    drawn
        How the samples were drawn.
    weights
        How much each of all samples counts, ``[n]``; None if all count the same.
    indices
        The samples that are there to be judged.
    count
        Number of all samples.

    Returns
    -------
    list of int
        Those of `indices` that are judged.

    Raises
    ------
    DataError
        If there are fewer than two, or not as many weights as samples.
    """
    if drawn != "mixed":
        return list(indices)
    if len(weights) != count:
        raise DataError(f"there are {len(weights)} weights for {count} samples; give one number per sample")
    found = [i for i in indices if float(weights[i]) > 0]
    if len(found) < 2:
        raise DataError(
            f"{len(found)} of the {len(indices)} verified samples were drawn at random (weight above 0), and only such "
            "samples prove a gain; verify more of the random part, or give test samples (--test)"
        )
    return found


def drawn_note(drawn: str | None, *, weighted: bool) -> str:
    """Say what a measured gain assumes about the draw of its samples; nothing if they are said to be random."""
    if drawn == "suspects":
        return "The samples are weighted suspects: whatever could not have been drawn is not represented."
    if drawn == "mixed":
        return "Only the samples that were drawn at random are judged; the others were selected, and only train."
    if weighted or drawn == "by-class":
        return "Each sample counts with the weight that was given for it."
    if drawn is None:
        return "Nobody said how the samples were drawn; this holds if they are a random sample of the data (drawn)."
    return ""


def remark_on_draw(drawn: str | None) -> str:
    """Say what the scores of the samples are not; nothing if they are a random sample, as far as anybody said."""
    return f"The verified samples {SCORES_OF[drawn]}." if drawn in SCORES_OF else ""

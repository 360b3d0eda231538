"""Tell whether red and blue seem to be exchanged."""

from __future__ import annotations

from torch import Tensor

from verifix.evaluation.label_order import DOUBT
from verifix.losses import predicted_classes


def remark_on_colours(logits: Tensor, exchanged: Tensor, labels: Tensor) -> str:
    """Return what to tell the user if red and blue seem to be exchanged, which means and spreads hardly show.

    Parameters
    ----------
    logits, exchanged
        ``[n, outputs]`` of the images as they are, and with red and blue exchanged.
    labels
        int64 ``[n]``.

    Returns
    -------
    str
        Empty unless the exchanged images are right so much more often that it cannot be chance (exact McNemar test).
    """
    from scipy.stats import binomtest

    right, other = (predicted_classes(each) == labels for each in (logits, exchanged))
    gained, lost = int((other & ~right).sum()), int((right & ~other).sum())
    if not gained or binomtest(gained, gained + lost, 0.5, alternative="greater").pvalue > DOUBT:
        return ""
    return (
        f"With red and blue exchanged, the model is right on {int(other.sum())} of the {len(labels)} samples instead "
        f"of {int(right.sum())}. Check the order of the colour channels."
    )

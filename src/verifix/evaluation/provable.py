"""What a proof on verified samples needs, checked before the work for it begins."""

from __future__ import annotations

import math

from verifix.errors import DataError, UsageError
from verifix.options import VERIFIED_FROM, CorrectOptions
from verifix.recipe.plan import minimum_samples

OUTER_FOLDS = 5
"""Folds of a nested proof. Inside each one the other four are the folds that choose: fits without two of the folds then
serve twice, and one pass over the samples gives the moments of all."""


def check_said(options: CorrectOptions) -> None:
    """Ask whether the model was trained on the samples: what they prove depends on it, and nothing shows it."""
    if options.verified_from is None:
        raise UsageError(
            f"a proof needs verified_from, one of {', '.join(map(repr, VERIFIED_FROM))}: whether the model was trained "
            "on the verified samples"
        )


def check_provable(count: int, kind: str, options: CorrectOptions) -> None:
    """Refuse samples that cannot prove anything, before the work for it begins.

    Parameters
    ----------
    count
        Verified samples.
    kind
        "nested" or "split".
    options
        The settings of the correction.

    Raises
    ------
    UsageError
        If the model was trained on them, or nobody verified them.
    DataError
        If they are too few for a correction from a part of them.
    """
    if options.origin != "unseen":
        why = "the model was trained on them" if options.origin == "training" else "nobody verified them"
        raise UsageError(f"these samples prove nothing, because {why}; give others as test samples (--test)")
    parts = OUTER_FOLDS if kind == "nested" else 2
    needed = math.ceil(minimum_samples(options) * parts / (parts - 1))
    if count < needed:
        raise DataError(
            f"{count} verified samples, but a {kind} proof needs at least {needed}; verify more, give test samples "
            "(--test), or skip the proof (--proof none)"
        )

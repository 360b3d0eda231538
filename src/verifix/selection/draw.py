"""The random part: samples that are drawn from all, over one round or several, each with the same probability."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verifix.errors import UsageError
from verifix.io.data.verified import Decisions, check_same, read_decisions
from verifix.selection.options import SelectOptions


@dataclass(frozen=True, eq=False)
class Draw:
    """What was drawn at random.

    Attributes
    ----------
    random
        The random part over all rounds, in the order in which it was drawn.
    probability
        That with which each sample of the data set came into it.
    now
        Those of it that are to be verified now.
    free
        All other samples that nobody has looked at, ``[m]``, in random order.
    earlier
        Files of earlier rounds.
    """

    random: tuple[int, ...]
    probability: float
    now: list[int]
    free: np.ndarray[Any, Any]
    earlier: tuple[str, ...]


def draw(length: int, fingerprint: str, settings: SelectOptions) -> Draw:
    """Draw samples at random, after those of earlier rounds.

    The random part of all rounds together is one random sample: the first samples of one random order. A sample of it
    that a strategy has selected before is not verified again, and counts as drawn.

    Parameters
    ----------
    length, fingerprint
        Of the data set.
    settings
        How many, and what was decided in earlier rounds.

    Returns
    -------
    Draw
        The random part.

    Raises
    ------
    UsageError
        If nothing is left.
    DataError
        If earlier rounds are about another data set.
    """
    before: Sequence[int] = ()
    done, earlier = np.empty(0, np.int64), tuple[str, ...]()
    if settings.verified is not None:
        decisions = read_decisions(settings.verified)
        check_same(decisions.header, length, fingerprint, settings.verified, "the samples to select from")
        before, done = decisions.header.random, _ids(decisions)
        earlier = (*decisions.header.earlier, os.path.abspath(settings.verified))  # noqa: PTH100 - links stay
    order = np.random.default_rng(settings.seed).permutation(length)
    rest = order[~np.isin(order, before)]
    seen = set(done.tolist())
    waiting = [i for i in before if i not in seen]
    more = rest[: max(0, settings.drawn_count - len(waiting))]
    random = (*before, *more.tolist())
    now = [*waiting[: settings.drawn_count], *more[~np.isin(more, done)].tolist()]
    free = rest[len(more) :]
    free = free[~np.isin(free, done)]
    if not now and not len(free):
        raise UsageError(f"all {length} samples are in {settings.verified}; there is nothing left to verify")
    return Draw(random, len(random) / length, now, free, earlier)


def _ids(decisions: Decisions) -> np.ndarray[Any, Any]:
    """Return the samples that somebody has looked at."""
    return np.array([*decisions.labels, *decisions.left_out], np.int64)

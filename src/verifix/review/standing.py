"""How far the verification is: progress, the rate of wrong labels, and the gain of a correction."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np

from verifix.io.data.records import Record
from verifix.io.data.tally import LABELS, Tally
from verifix.review.betting import Bounds, bounds
from verifix.review.looks import Gain, Looks
from verifix.selection.queue import Queue


@dataclass(frozen=True)
class Standing:
    """What the page shows beside the samples.

    Attributes
    ----------
    samples
        Of the queue.
    decided
        How many of them somebody has decided on, disagreements included.
    labelled
        How many of them have a label that counts.
    relabelled
        How many of these have another label than the given one.
    rate
        The share of wrong labels in the data set; None without a random part, or given labels.
    gain
        What corrections from the labels so far gain; None if none is made.
    """

    samples: int
    decided: int
    labelled: int
    relabelled: int
    rate: Bounds | None
    gain: Gain | None


def standing(queue: Queue, earlier: Tally, decisions: Tally, looks: Looks) -> Standing:
    """Sum up what was decided.

    Parameters
    ----------
    queue
        The queue.
    earlier
        Decisions of earlier rounds.
    decisions
        Those of this one.
    looks
        The corrections that were made of it.

    Returns
    -------
    Standing
        The sum.
    """
    records = [decisions.outcome(entry.id) for entry in queue.entries]
    labelled = [record for record in records if record is not None and record.status in LABELS]
    disputed = set(decisions.disputed())
    drawn = in_turn(queue, earlier, decisions)
    return Standing(
        samples=len(records),
        decided=sum(r is not None or e.id in disputed for r, e in zip(records, queue.entries, strict=True)),
        labelled=len(labelled),
        relabelled=sum(record.status == "relabel" for record in labelled),
        rate=wrong_rate(drawn, queue.header.length),
        gain=looks.gain(drawn),
    )


def in_turn(queue: Queue, earlier: Tally, decisions: Tally) -> list[tuple[int, Record | None]]:
    """Return the samples of the random part up to the first one that nobody has decided on.

    A reviewer chooses what to verify next, by class or otherwise, and what was chosen is no random sample. All samples
    up to a certain one, in the order in which they were drawn, are.

    Parameters
    ----------
    queue
        The queue.
    earlier, decisions
        What was decided in earlier rounds, and in this one.

    Returns
    -------
    list
        In the order of the draw, each sample with the record that counts; None where people disagree.
    """
    found: list[tuple[int, Record | None]] = []
    for sample in queue.header.random:
        known = decisions if decisions.touched(sample) else earlier
        if not known.touched(sample):
            break
        found.append((sample, known.outcome(sample)))
    return found


def ever_in_turn(queue: Queue, earlier: Tally, decisions: Tally) -> int:
    """Return how many samples of the random part were ever in turn, with those whose decision was taken back.

    Parameters
    ----------
    queue, earlier, decisions
        As in `in_turn`.

    Returns
    -------
    int
        At least as many as `in_turn` returns.
    """
    known = (decisions.known(sample) or earlier.touched(sample) for sample in queue.header.random)
    return sum(1 for _ in itertools.takewhile(bool, known))


def wrong_rate(drawn: list[tuple[int, Record | None]], length: int) -> Bounds | None:
    """Estimate the share of wrong labels.

    Parameters
    ----------
    drawn
        What `in_turn` returns.
    length
        Number of samples in the data set.

    Returns
    -------
    Bounds or None
        From 0 to 1. Samples of which it is not known whether their label is right (unsure, skipped, disputed, or
        without a given label) count as right for the lower bound, as wrong for the upper one, and not at all for the
        estimate. None if it is not known of any.
    """
    statuses = [None if record is None or record.label is None else record.status for _, record in drawn]
    if not any(status in LABELS for status in statuses):
        return None
    wrong, unknown = (np.array([s == "relabel" for s in statuses]), np.array([s not in LABELS for s in statuses]))
    least, most = (bounds(values.astype(float), 0.0, 1.0, total=length) for values in (wrong, wrong | unknown))
    known = int((~unknown).sum())
    return replace(least, estimate=float(wrong.sum()) / known, high=most.high, count=known)

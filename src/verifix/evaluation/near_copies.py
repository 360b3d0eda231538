"""Near-copies that nobody declared: samples far closer to some of their class than these are to any other."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from verifix.evaluation.predictions import Array
from verifix.model.borrow import seeded
from verifix.model.samples import Samples
from verifix.recipe.context import Context

CLOSER = 0.5
"""Near-copies are no more than so many times as far from a sample as the next one of its class."""

RARE = 0.01
"""And chance makes such a gap around a sample, anywhere, with no more than this probability."""

SHARE, LEAST = 0.05, 4
"""Share, and number, of samples with near-copies that are worth a word."""

LEAST_DIMENSIONS = 1.25
"""On a line, points crowd by chance."""

SMALLEST_CLASS = 6
"""In a smaller class, what is near is not known."""

MOST_WORK = 10**10
"""Products of numbers up to which distances of inputs are computed; beyond it, those of logits."""

ROWS = 500
"""Samples whose distances are in memory at once."""

LOOKED_AT = 1000
"""Samples of a class whose neighbours are looked for, among all of the class; of more, so many evenly spread."""


def near_copies(points: Tensor, labels: Array, groups: Array, sides: Array) -> Array:
    """Find samples with near-copies on another side.

    Parameters
    ----------
    points
        Float ``[n, d]``; each column is brought to unit variance.
    labels, groups
        int64 ``[n]``; of a group, which copies are, only the first sample is looked at.
    sides
        int64 ``[n]``: the fold of each sample, or whether it corrects or proves.

    Returns
    -------
    ndarray
        Indices, of up to `LOOKED_AT` samples per class.

    Notes
    -----
    Let r_j be the distance of a sample to the j-th nearest of its class. Where points are spread evenly around it in D
    dimensions, (r_j / r_{j+1})^(jD) is uniform between 0 and 1 (Facco et al., Scientific Reports 7:12140, 2017; Denti
    et al., Scientific Reports 12:20005, 2022, who also estimate D from r_{2k} / r_k, as done here with k a quarter or
    an eighth of the class, whichever gives more: copies between the two distances hide the dimension). A sample has
    near-copies if that is below `RARE` / J for one of the J = half of its class values of j, with r_j at most `CLOSER`
    times r_{j+1}, and one of the j nearest is on another side.
    """
    first = np.unique(groups, return_index=True)[1]
    x = points[first].double()
    x = x - x.mean(dim=0)
    spread = x.square().mean(dim=0).sqrt()
    x = x[:, spread > 0] / spread[spread > 0]
    parts: list[tuple[Array, Array, Array, Array]] = []
    for label in np.unique(labels[first]):
        own = np.flatnonzero(labels[first] == label)
        if len(own) < SMALLEST_CLASS:
            continue
        queries = np.unique(np.linspace(0, len(own) - 1, min(len(own), LOOKED_AT)).round().astype(np.int64))
        distances, order = _nearest(x[own], torch.from_numpy(queries))
        parts.append((first[own], queries, distances, order))
    dimensions = max((_dimensions([part[2] for part in parts], share) for share in (4, 8)), default=0.0)
    if dimensions < LEAST_DIMENSIONS:
        return np.zeros(0, np.int64)
    found = [_with_gaps(*part, sides, dimensions) for part in parts]
    return np.sort(np.concatenate(found))


def _nearest(x: Tensor, queries: Tensor) -> tuple[Array, Array]:
    """Return, for some samples, the distances to the nearer half of all others and one more, and which they are."""
    distances, order = [], []
    for some in queries.split(ROWS):
        own = torch.cdist(x[some], x, compute_mode="donot_use_mm_for_euclid_dist")
        own[torch.arange(len(own)), some] = -1.0
        found = own.topk(len(x) // 2 + 2, dim=1, largest=False)
        distances.append(found.values[:, 1:])
        order.append(found.indices[:, 1:])
    return torch.cat(distances).numpy(), torch.cat(order).numpy()


def _dimensions(distances: Sequence[Array], share: int) -> float:
    """Estimate the dimension from the nearest one in `share` of a class, and twice as many; 0 if that cannot be."""
    logs = [np.zeros(0)]
    for own in distances:
        k = max(len(own) // share, 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            logs.append(np.log(own[:, 2 * k - 1] / own[:, k - 1]))
    steps = np.concatenate(logs)
    middle = float(np.median(steps[np.isfinite(steps)])) if np.isfinite(steps).any() else 0.0
    return math.log(2) / middle if middle > 0 else 0.0


def _with_gaps(rows: Array, queries: Array, distances: Array, order: Array, sides: Array, dimensions: float) -> Array:
    near, next_ones = distances[:, :-1], distances[:, 1:]
    ratios = np.divide(near, next_ones, out=np.ones_like(near), where=next_ones > 0)
    chance = ratios ** (dimensions * np.arange(1, near.shape[1] + 1))
    away = sides[rows][order[:, :-1]] != sides[rows[queries]][:, None]
    gaps = (ratios <= CLOSER) & (chance <= RARE / near.shape[1]) & np.logical_or.accumulate(away, axis=1)
    found: Array = rows[queries[gaps.any(axis=1)]]
    return found


def remark_on_near_copies(samples: Samples, sides: Sequence[int], logits: Callable[[], Tensor]) -> str | None:
    """Say that samples do not seem to be independent, unless it was declared which are.

    Parameters
    ----------
    samples
        The samples.
    sides
        What must not share near-copies: the fold of each, or 0 if it corrects, and a number of its own if it proves.
    logits
        Returns what the model says to them ``[n, outputs]``: looked at where inputs are no float tensors of one shape,
        or too large.

    Returns
    -------
    str or None
        A sentence or two; None if nothing was noticed.
    """
    if samples.declared or len(samples) < SMALLEST_CLASS:
        return None
    labels = samples.labels.numpy()
    sizes = np.unique(labels, return_counts=True)[1]
    looked = int(np.minimum(sizes, LOOKED_AT).sum())
    points = _inputs(samples, float((sizes * np.minimum(sizes, LOOKED_AT)).sum()))
    found = near_copies(logits() if points is None else points, labels, samples.groups, np.asarray(sides))
    if len(found) < max(LEAST, SHARE * looked):
        return None
    those = " that were looked at" if looked < len(samples) else ""
    return (
        f"{len(found)} of the {looked} samples{those} seem to have near-copies among the others: some of their class "
        "lie far closer than chance would put them. Frames of one video, images of one patient and augmented copies "
        "are not independent, and prove no gain as if they were. Declare what belongs together with groups= "
        "(--groups); if all samples are independent, give each a group of its own."
    )


def remark_between_folds(whole: Context) -> str | None:
    """Say that samples of different folds do not seem to be independent; see `remark_on_near_copies`."""
    folds = {int(i): fold for fold, members in enumerate(whole.run.members) for i in members}
    with seeded(whole.run.seed):  # reading draws from torch's generator, which stages may draw from as well
        sides = [folds[i] for i in whole.indices]
        return remark_on_near_copies(whole.run.samples, sides, lambda: whole.run.collected.logits)


def _inputs(samples: Samples, pairs: float) -> Tensor | None:
    """Return the inputs ``[n, d]``, if they are float tensors of one shape and not too large."""
    rows: list[Tensor] = []
    for batch in samples.batches(range(len(samples)), 1):
        x = batch.inputs
        if not isinstance(x, Tensor) or x.is_nested or not x.is_floating_point() or pairs * x.numel() > MOST_WORK:
            return None
        if rows and x.numel() != len(rows[0]):
            return None
        rows.append(x.detach().cpu().reshape(-1).to(torch.float32))
    return torch.stack(rows)

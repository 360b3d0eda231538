"""Pick samples whose given label is probably right, for users who have no verified samples.

There are three rankings. Each gives every sample a score (lower = more trusted), and the best samples of each class are
picked, the same number from each. The result is not a verified set: some of its labels are wrong, and nothing that is
measured on it estimates accuracy on new data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

from verifix.capture.first_runs import check_runs
from verifix.errors import DataError, UsageError
from verifix.model.borrow import check_model
from verifix.model.call import own_call
from verifix.model.outputs import understood
from verifix.model.reading import read_in_parts
from verifix.model.sources import Source
from verifix.model.threads import threads_for
from verifix.model.work import work_of
from verifix.model.working_copy import working_copy
from verifix.model.wrappers import unwrapped
from verifix.options import TRUST_METHODS, TRUSTED_COUNT, ForwardArguments, RunOptions
from verifix.selection.rankings import RANKINGS
from verifix.selection.score_files import begin_chunks, finish_chunks
from verifix.settings import one_of, require, takes, whole
from verifix.storage.chunks import Chunks


@dataclass(frozen=True, eq=False)
class Trusted:
    """Samples that were picked because their given label is probably right; nobody verified them.

    Attributes
    ----------
    indices
        Indices of the picked samples, ascending; for a DataLoader, positions among the samples that it draws, in the
        order of its dataset.
    labels
        Their given labels, int64 ``[len(indices)]``.
    scores
        Scores of *all* samples, float64 ``[n]``, lower = more trusted: cross-entropy in nats; squared change of the
        gradient; or 1 − normalised margin, with 1 added for samples that cleanlab calls issues (never picked).
    method
        How samples were ranked.
    shortfall
        For each class with too few samples to pick from, how many are missing.
    source
        The picked samples, to be given to `verifix.correct` with ``verified_from="trusted"``.
    """

    indices: list[int]
    labels: Tensor
    scores: Tensor
    method: str
    shortfall: dict[int, int]
    source: Source = field(repr=False)

    @property
    def per_class(self) -> dict[int, int]:
        """Number of picked samples per class; 0 for a class without any."""
        return dict(sorted((dict.fromkeys(self.shortfall, 0) | Counter(self.labels.tolist())).items()))

    def as_dict(self) -> dict[str, Any]:
        """Return as plain data: method, count, and the number of picked and missing samples per class."""
        return {
            "method": self.method,
            "count": len(self.indices),
            "per_class": {str(label): count for label, count in self.per_class.items()},
            "shortfall": {str(label): count for label, count in self.shortfall.items()},
        }

    def summary(self) -> str:
        """Describe what was picked in one or two lines of text."""
        lines = [
            f"{len(self.indices)} of {len(self.scores)} samples trusted by {self.method}; nobody verified their labels."
        ]
        if self.shortfall:
            few = [f"class {label} lacks {count}" for label, count in list(self.shortfall.items())[:10]]
            lines.append(f"Too few samples to pick from: {', '.join(few)}{', …' * (len(self.shortfall) > 10)}.")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class TrustArguments(ForwardArguments, RunOptions):
    """What `verifix.trust` takes."""

    method: str = "low-loss"
    """How to rank. "low-loss": cross-entropy of the given label. "low-curvature": mean over 10 random sign vectors z of
    ‖∇ₓℓ(x + h z) − ∇ₓℓ(x)‖², h = 0.001, with ℓ the cross-entropy of the given label and ∇ₓ its gradient with respect to
    all floating inputs. "confident": confident learning of cleanlab on the model's probabilities; samples that it calls
    issues are left out, the others go by normalised margin."""
    count: int = TRUSTED_COUNT
    """How many to pick in all, the same number of each class that occurs; if that does not divide, the lowest classes
    get one more. A class with too few falls short, and no other takes its place."""

    scores: str | None = None
    """A new folder for the scores of all samples: one Parquet file per process. What a killed run has scored is kept in
    it until then, and the same call goes on from there."""

    def __post_init__(self) -> None:
        """Check what can be checked without data."""
        super().__post_init__()
        allowed = f"one of {', '.join(map(repr, TRUST_METHODS))}"
        require(one_of(self.method, *TRUST_METHODS), "method", self.method, allowed)
        require(whole(self.count, 2), "count", self.count, "a whole number of 2 or more")


@takes(TrustArguments)
def trust(model: nn.Module, data: Any, settings: TrustArguments) -> Trusted:
    """Pick samples whose given label is probably right, for a correction without verified samples.

    Parameters
    ----------
    model
        The trained classifier, as `verifix.correct` takes it. It is borrowed: a copy is run, in eval mode.
    data
        Labelled samples, such as the training set with its wrong labels: a DataLoader, a Dataset, or a pair of tensors
        ``inputs [n, ...]``, ``labels [n]``.
    settings
        Each is a keyword argument. The random vectors of a sample depend on nothing but its input and `seed`.

    Returns
    -------
    Trusted
        The picked samples, and the scores of all.

    Raises
    ------
    UsageError
        If an argument is invalid, `count` is smaller than the number of classes, or cleanlab is missing.
    DataError
        If samples do not fit the model, or the curvature cannot be computed: no floating-point input, or half
        precision.

    Notes
    -----
    Selecting trusted samples replaces verification in SAP (arXiv 2403.08618 v2). The curvature is that of
    Garg, Ravikumar and Roy, "Memorization through the lens of curvature of loss function around samples"
    (arXiv 2307.05831), who average it over all epochs of training; here, only the final model is available. Confident
    learning: Northcutt, Jiang and Chuang (arXiv 1911.00068). It expects probabilities of models that have not seen the
    sample; those of a network that has memorised its labels show few issues.

    Examples
    --------
    >>> import torch, verifix
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> trusted = verifix.trust(model, (torch.randn(200, 4), torch.arange(200) % 2), count=60, progress=False)
    >>> trusted.per_class
    {0: 30, 1: 30}
    >>> fixed = verifix.correct(model, trusted.source, verified_from="trusted", alpha=100.0, progress=False)
    """
    rank, chunks = RANKINGS[settings.method], Chunks(settings.scores)
    model = unwrapped(model)
    check_model(model)
    with own_call(settings.seed):
        begin_chunks(chunks, model, settings, method=settings.method)
        how = settings.batch_size, settings.progress, settings.forward, settings.max_samples
        samples = read_in_parts(data, chunks, *how)
        if len(samples) < 2:
            raise DataError("there is 1 sample to pick from; give the labelled samples that the model was trained on")
        classes = len(samples.labels.unique())
        if settings.count < classes:
            raise UsageError(
                f"count is {settings.count}, but the data has {classes} classes; trust at least one sample of each"
            )
        with working_copy(model, settings) as (work, where):
            samples, _, _ = check_runs(model, work, where, samples)
            samples, _ = understood(work, samples, where, settings.outputs)
            with threads_for(partial(work_of, work, samples, where)):
                scores, eligible = rank(work, where, samples, settings, chunks)
        indices, shortfall = choose(scores, samples.labels, eligible, samples.digests, settings.count)
        picked = torch.zeros(len(samples), dtype=torch.bool)
        picked[indices] = True
        finish_chunks(chunks, samples, {"score": scores, "picked": picked})
    source = replace(
        samples.source,
        dataset=Subset(samples.source.dataset, indices),
        batch_size=samples.batch_size,
        picked_by=settings.method,
    )
    return Trusted(indices, samples.labels[indices], scores, settings.method, shortfall, source)


def choose(
    scores: Tensor, labels: Tensor, eligible: Tensor, digests: Sequence[bytes], count: int
) -> tuple[list[int], dict[int, int]]:
    """Pick the samples with the lowest scores, the same number of each class.

    Parameters
    ----------
    scores
        ``[n]``, lower = more trusted.
    labels
        int64 ``[n]``.
    eligible
        bool ``[n]``: False for samples that are never picked.
    digests
        One per input. They settle equal scores, so that the order of the samples does not.
    count
        How many in all, at least one per class.

    Returns
    -------
    indices : list of int
        The picked samples, ascending.
    shortfall : dict
        For each class with too few, how many are missing.
    """
    classes = labels.unique().tolist()
    each, more = divmod(count, len(classes))
    indices: list[int] = []
    shortfall: dict[int, int] = {}
    for place, label in enumerate(classes):
        wanted = each + (place < more)
        candidates = ((labels == label) & eligible).nonzero().flatten().tolist()
        found = sorted(candidates, key=lambda i: (float(scores[i]), digests[i]))[:wanted]
        indices += found
        if len(found) < wanted:
            shortfall[label] = wanted - len(found)
    return sorted(indices), shortfall

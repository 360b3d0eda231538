"""One pass over jittered copies of the verified samples: their moments, fold by fold, beside those of the samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import torch

from verifix.capture.collect import Collected
from verifix.model.batching import with_smaller_batches
from verifix.model.samples import Samples
from verifix.model.sources import Batch
from verifix.options import CorrectOptions
from verifix.recipe.context import Context
from verifix.recipe.stages.jitter import Change, jitter_for

COPIES, FEWEST, MOST = 10, 4, 2000
"""Copies of each sample, as far as there are no more than `MOST` in all. With so many samples that this would be fewer
than `FEWEST` of each, there are none: they would add nothing."""


def with_copies(whole: Context, options: CorrectOptions) -> Context:
    """Add the moments of jittered copies to a context that no stage has changed.

    Parameters
    ----------
    whole
        The context.
    options
        The settings.

    Returns
    -------
    Context
        With `Run.copies`; as it was where samples are so many that they need none, or their inputs cannot be jittered.

    Raises
    ------
    DataError
        If something is not finite.
    """
    run = whole.run
    count, copies = len(run.samples), min(COPIES, MOST // len(run.samples))
    if copies < FEWEST:
        return whole
    change = jitter_for(whole, next(run.samples.batches(range(min(count, MOST // COPIES)), MOST // COPIES)).inputs)
    if change is None:
        return whole
    samples = _jittered(run.samples, copies, change, run.seed)
    folds = [[int(i) + copy * count for copy in range(copies) for i in fold] for fold in run.members]

    def passed(size: int) -> Collected:
        return run.collect(samples, folds, size, show=options.progress, shared=True, answered=False)

    collected, _ = with_smaller_batches(passed, run.batch_size, options)
    return replace(whole, run=replace(run, copies=collected))


@dataclass(frozen=True)
class _Jittered(Samples):
    """Samples that are handed out changed, each always in the same way, whatever batch it is in."""

    change: Change = lambda inputs, _: inputs
    seed: int = 0

    def batches(self, indices: Sequence[int], batch_size: int) -> Iterator[Batch]:
        """Yield the samples at `indices`, in that order, `batch_size` at a time."""
        generator = torch.Generator()
        for batch in super().batches(indices, batch_size):
            parts = [
                self.change(batch.inputs[row : row + 1], generator.manual_seed(self.seed * MOST + index))
                for row, index in enumerate(batch.indices)
            ]
            yield replace(batch, inputs=torch.cat(parts))


def _jittered(samples: Samples, copies: int, change: Change, seed: int) -> Samples:
    """Return so many copies of all samples, one set after the other."""
    many = samples.subset([*range(len(samples))] * copies)
    return _Jittered(**{f.name: getattr(many, f.name) for f in fields(Samples)}, change=change, seed=seed)

"""What a model answers to samples, batch by batch, each process of a run its part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from verifix.model import ranks
from verifix.model.borrow import borrowed
from verifix.model.predict import predict
from verifix.model.samples import Samples
from verifix.model.sources import DEFAULT_BATCH_SIZE
from verifix.model.tensors import device_of
from verifix.model.threads import threads_for
from verifix.model.work import work_of


def predicted(
    model: nn.Module,
    samples: Samples,
    indices: Sequence[int] | None = None,
    done: Callable[[int], object] | None = None,
) -> Tensor:
    """Return logits ``[n, outputs]``, float64 on the CPU, of some samples, or of all; tell `done` how many more."""
    some = range(len(samples)) if indices is None else indices
    size, device = samples.batch_size or DEFAULT_BATCH_SIZE, device_of(model)
    batches = [some[start : start + size] for start in range(0, len(some), size)]

    def run(batch: Sequence[int]) -> Tensor:
        logits = predict(model, samples, batch, size, device)
        if done is not None:
            done(len(batch))
        return logits

    with borrowed(model), threads_for(partial(work_of, model, samples, device)):
        return torch.cat(ranks.spread(run, batches, [len(batch) for batch in batches]))

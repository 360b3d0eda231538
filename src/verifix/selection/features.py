"""What the last linear layer of a model sees of each sample, brought to a few numbers."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from verifix.capture.interceptor import intercepting
from verifix.capture.layer import Layer
from verifix.capture.selection import Selection
from verifix.model.predict import logits_in
from verifix.model.run import run_model, to_device
from verifix.model.samples import Samples
from verifix.progress import note

WIDTH = 64
"""Numbers that are kept of a sample. Random projections to so many change distances by about an eighth."""

COLLECTED_EVERY = 2**14
"""Samples after which Python looks for what watched the layers: it refers to itself, and holds their tensors."""

Run = Callable[[Sequence[int], int], tuple[Tensor, Tensor]]


def with_features(work: nn.Module, where: torch.device, samples: Samples, seed: int) -> Run:
    """Return a function that runs samples and gives their logits, and what the last layer sees of them.

    Parameters
    ----------
    work
        The working copy of the model.
    where
        Its device.
    samples
        The samples; two of them are run.
    seed
        Of the random projection.

    Returns
    -------
    callable
        ``(indices, batch size) → logits [n, outputs] in float64, features [n, WIDTH or fewer] in float32``, both on
        the CPU. Without a linear layer that sees one row per sample, logits are the features, with a note.
    """
    few = range(min(2, len(samples)))
    counts: dict[Layer, int] = {}

    def count(layer: Layer, rows: Tensor) -> None:
        counts[layer] = counts.get(layer, 0) + rows.shape[1]

    _run(work, where, samples, few, len(few), None, count)
    last = [layer for layer, rows in counts.items() if layer.groups == 1 and rows == len(few)][-1:]
    if not last:
        note("no linear layer sees one row per sample, so samples are spread by the model's logits")
    projection: Callable[[Tensor], Tensor] | None = None

    watched = 0

    def run(indices: Sequence[int], batch_size: int) -> tuple[Tensor, Tensor]:
        nonlocal projection, watched
        rows: list[Tensor] = []
        only = frozenset(last)
        logits = _run(work, where, samples, indices, batch_size, only, lambda _, seen: rows.append(seen[0].cpu()))
        seen = torch.cat(rows).double() if last else logits
        rows.clear()
        watched += len(indices)
        if watched >= COLLECTED_EVERY:
            gc.collect()
            watched = 0
        projection = projection or _projection(seen.shape[1], seed)
        return logits, projection(seen)

    return run


def _run(
    work: nn.Module,
    where: torch.device,
    samples: Samples,
    indices: Sequence[int],
    batch_size: int,
    only: frozenset[Layer] | None,
    sink: Callable[[Layer, Tensor], None],
) -> Tensor:
    """Run samples while layers are watched; return the logits ``[n, outputs]``."""
    logits = []
    with intercepting(work, sink, Selection(only=only), masked=False) as census, torch.no_grad():
        for batch in samples.batches(indices, batch_size):
            census.begin(len(batch.labels))
            output = run_model(work, to_device(batch.inputs, where), samples.forward)
            logits.append(logits_in(output, len(batch.labels)).detach().double().cpu())
    return torch.cat(logits)


def _projection(width: int, seed: int) -> Callable[[Tensor], Tensor]:
    """Return a map to `WIDTH` numbers that nearly keeps distances; what has no more stays as it is."""
    if width <= WIDTH:
        return lambda rows: rows.float()
    from sklearn.random_projection import GaussianRandomProjection

    fitted = GaussianRandomProjection(WIDTH, random_state=seed).fit(np.zeros((1, width)))
    return lambda rows: torch.from_numpy(fitted.transform(rows.numpy())).float()

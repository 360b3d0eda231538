"""One pass of the uncorrected model over samples: the moments of every layer, per fold."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from verifix.capture.census import Account, Census
from verifix.capture.interceptor import intercepting
from verifix.capture.layer import Bias, Layer
from verifix.capture.padding import Padding
from verifix.capture.selection import Selection
from verifix.errors import AmbiguousBatchError, DataError
from verifix.model.nonfinite import check_finite, first_tensor
from verifix.model.run import run_model, to_device
from verifix.model.samples import Samples
from verifix.model.sources import Batch
from verifix.moments import Moments, merge
from verifix.progress import progress_bar


@dataclass(frozen=True)
class Collected:
    """Moments of every layer and fold, and the account of every parameter.

    Attributes
    ----------
    folds
        For each fold, the moments by layer.
    accounts
        What becomes of each parameter of two or more dimensions.
    digests
        SHA-256 of each sample that went in.
    padded
        Indices of the largest batch with padding; empty if there was none.
    biases
        The bias of each layer that has one of its own.
    """

    folds: tuple[Mapping[Layer, Moments], ...]
    accounts: tuple[Account, ...]
    digests: frozenset[bytes] = field(default_factory=frozenset)
    padded: tuple[int, ...] = ()
    biases: Mapping[Layer, Bias] = field(default_factory=dict)

    @property
    def layers(self) -> list[Layer]:
        """The layers to correct, in the order of first use."""
        chosen = {layer for account in self.accounts if account.status == "corrected" for layer in account.layers}
        return [layer for layer in dict.fromkeys(itertools.chain(*self.folds)) if layer in chosen]

    def moments(self, layer: Layer, folds: Iterable[int], earlier: Mapping[Layer, Moments]) -> Moments:
        """Merge one layer's moments over some folds, and those of earlier samples."""
        # Adding the other folds up is total − fold without the cancellation: what none of them excites stays zero.
        parts = [self.folds[fold][layer] for fold in folds if layer in self.folds[fold]]
        if layer in earlier:
            parts.append(earlier[layer])
        return merge(parts) if parts else next(table[layer] for table in self.folds if layer in table).empty()


def collect(
    model: nn.Module,
    samples: Samples,
    folds: Sequence[Sequence[int]],
    *,
    batch_size: int,
    device: torch.device,
    selection: Selection | None = None,
    padding: Padding | None = None,
    show: bool = False,
) -> Collected:
    """Run a borrowed model once over all folds; batches never cross folds.

    Parameters
    ----------
    model
        The uncorrected model, borrowed (see `verifix.model.borrow.borrowed`), on `device`.
    samples
        The verified samples.
    folds
        Indices of each fold.
    batch_size
        Samples per batch.
    device
        Where the model is.
    selection
        Layers wanted; all by default.
    padding
        How padding is told; as usual by default.
    show
        Whether to show progress.

    Returns
    -------
    Collected
        One set of moments per fold.

    Raises
    ------
    DataError
        If the rows of a layer are not finite.
    """
    tables: list[dict[Layer, Moments]] = [{} for _ in folds]
    current: dict[Layer, Moments] = {}

    def sink(layer: Layer, rows: Tensor) -> None:
        if counting:
            add_rows(current, layer, rows)

    counting = False
    padded: tuple[int, ...] = ()
    selection = selection or Selection()
    watched = intercepting(model, sink, selection, padding=padding)
    with progress_bar("moments", sum(map(len, folds)), show) as bar, watched as census:
        first, *others = (int(i) for fold in folds for i in fold)
        another = next((i for i in others if samples.digests[i] != samples.digests[first]), None)
        _run(model, samples, samples.alone(first), census, device, trial=1)  # shows what grows with the samples
        if census.untraced and another is not None:
            _run(model, samples, samples.alone(another), census, device, trial=2)
        counting = True
        for table, fold in zip(tables, folds, strict=True):
            current = table
            for batch in samples.batches(fold, batch_size):
                padded = max(padded, _run(model, samples, batch, census, device), key=len)
                bar.update(len(batch.labels))
    accounts = tuple(census.accounts(model, selection))
    _condense(tables)
    digests = frozenset(samples.digests)
    return Collected(tuple(tables), accounts, digests, padded, census.biases)


def _run(
    model: nn.Module, samples: Samples, batch: Batch, census: Census, device: torch.device, trial: int = 0
) -> tuple[int, ...]:
    """Run one batch, in parts if its samples and tokens could be mistaken for each other; return padded indices."""
    census.begin(len(batch.labels), trial)
    try:
        logits = first_tensor(run_model(model, to_device(batch.inputs, device), samples.forward))
        if isinstance(logits, Tensor) and not logits.is_nested:
            check_finite(logits, batch.indices)
    except AmbiguousBatchError:
        if census.batch.counted:
            raise
        half = len(batch.indices) // 2
        halves = (batch.indices[:half], batch.indices[half:])
        parts = [part for half in halves for part in samples.batches(half, len(half))]
        return max((_run(model, samples, part, census, device) for part in parts), key=len)
    return tuple(batch.indices) if census.batch.padded is not None else ()


def _condense(tables: Sequence[Mapping[Layer, Moments]]) -> None:
    """Multiply a fold's rows out once, if the rows of the others are too many for the dual form anyway."""
    for layer in {layer for table in tables for layer in table}:
        parts = [table[layer] for table in tables if layer in table]
        if sum(part.n for part in parts) - max(part.n for part in parts) >= parts[0].width:
            for part in parts:
                part.condense_()


def add_rows(table: dict[Layer, Moments], layer: Layer, rows: Tensor) -> None:
    """Add rows ``[groups, n, d_in]`` to the moments of their layer; refuse rows that are not finite."""
    rows = rows.to(moments_device(rows.device))
    if layer in table:
        table[layer].add_(rows)
    else:
        table[layer] = Moments(rows)
    if not torch.isfinite(table[layer].trace).all():
        raise DataError(
            f"the input of layer {layer.parameter!r} contains NaN or Inf; check the weights before it and the inputs"
        )


def moments_device(device: torch.device) -> torch.device:
    """Moments live where the model is, unless that device has no float64."""
    return torch.device("cpu") if device.type == "mps" else device

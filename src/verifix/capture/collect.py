"""One pass of the uncorrected model over samples: the moments of every layer, per fold."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from verifix.capture.census import Account, Census
from verifix.capture.interceptor import intercepting
from verifix.capture.kinds.lags import Geometry, Patches, PatchMoments
from verifix.capture.layer import Bias, Layer
from verifix.capture.padding import Padding
from verifix.capture.selection import Selection
from verifix.errors import AmbiguousBatchError, DataError
from verifix.model.nonfinite import check_finite
from verifix.model.predict import logits_in
from verifix.model.run import run_model, to_device
from verifix.model.samples import Samples
from verifix.model.sources import Batch
from verifix.moments import Moments, all_finite, merge
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
    buffers
        Sizes of the buffers that multiply activations, by name.
    logits
        What the model answers, ``[n, outputs]``, float64 on the CPU, in the order of the samples' indices.
    """

    folds: tuple[Mapping[Layer, Moments], ...]
    accounts: tuple[Account, ...]
    digests: frozenset[bytes] = field(default_factory=frozenset)
    padded: tuple[int, ...] = ()
    biases: Mapping[Layer, Bias] = field(default_factory=dict)
    buffers: Mapping[str, int] = field(default_factory=dict)
    logits: Tensor = field(default_factory=lambda: torch.empty(0, 0, dtype=torch.float64))

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
    exact: bool = False,
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
    exact
        Whether rows are multiplied in float64 in any case; see `verifix.moments`.
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
    tables: list[dict[Layer, Moments]] = []
    current = _Fold()
    sizes = [len(fold) for fold in folds]
    fewest = sum(sizes) - max(sizes) if len(sizes) > 1 else sum(sizes)  # samples that moments will be wanted of

    def sink(layer: Layer, rows: Tensor) -> None:
        if counting:
            current.seen[layer] = None
            add_rows(current.table, layer, rows.double() if exact else rows)

    def patched(layer: Layer, patches: Patches) -> bool:
        few = fewest * patches.geometry.positions < patches.shape[2]  # too few rows to go without them
        if few or moments_device(patches.x.device) != patches.x.device or not patches.worthwhile:
            return False
        if counting:
            current.add_(layer, replace(patches, x=patches.x.double()) if exact else patches)
        return True

    counting = False
    padded: tuple[int, ...] = ()
    answers: list[tuple[Sequence[int], Tensor]] = []
    selection = selection or Selection()
    watched = intercepting(model, sink, selection, padding=padding, patched=patched)
    with progress_bar("moments", sum(map(len, folds)), show) as bar, watched as census:
        first, *others = (int(i) for fold in folds for i in fold)
        another = next((i for i in others if samples.digests[i] != samples.digests[first]), None)
        _run(model, samples, samples.alone(first), census, device, trial=1)  # shows what grows with the samples
        if census.untraced and another is not None:
            _run(model, samples, samples.alone(another), census, device, trial=2)
        counting = True
        for fold in folds:
            current = _Fold()
            for batch in census.aside(samples.batches(fold, batch_size)):
                padded = max(padded, _run(model, samples, batch, census, device, answers=answers), key=len)
                bar.update(len(batch.labels))
            tables.append(current.moments())
    accounts = tuple(census.accounts(model, selection))
    _condense(tables)
    digests = frozenset(samples.digests)
    order = torch.tensor([int(i) for indices, _ in answers for i in indices]).argsort()
    logits = torch.cat([part for _, part in answers])[order]
    return Collected(tuple(tables), accounts, digests, padded, census.biases, census.buffers, logits)


@dataclass
class _Fold:
    """The moments of one fold while they are collected: of rows, and of patches."""

    seen: dict[Layer, None] = field(default_factory=dict)
    table: dict[Layer, Moments] = field(default_factory=dict)
    lags: dict[tuple[Layer, Geometry], PatchMoments] = field(default_factory=dict)

    def add_(self, layer: Layer, patches: Patches) -> None:
        """Add patches to the moments of their layer; refuse them if they are not finite."""
        _check(all_finite(patches.x), layer)
        self.seen[layer] = None
        key = layer, patches.geometry
        if key in self.lags:
            self.lags[key].add_patches_(patches)
        else:
            self.lags[key] = PatchMoments(patches)

    def moments(self) -> dict[Layer, Moments]:
        """Return the moments of every layer, in the order of first use."""
        for (layer, _), found in self.lags.items():
            found.condense_()
            self.table[layer] = self.table[layer] + found if layer in self.table else found
        self.lags.clear()
        return {layer: self.table[layer] for layer in self.seen}


def _run(
    model: nn.Module,
    samples: Samples,
    batch: Batch,
    census: Census,
    device: torch.device,
    trial: int = 0,
    answers: list[tuple[Sequence[int], Tensor]] | None = None,
) -> tuple[int, ...]:
    """Run one batch, in parts if its samples and tokens could be mistaken for each other; return padded indices."""
    census.begin(len(batch.labels), trial)
    try:
        output = run_model(model, to_device(batch.inputs, device), samples.forward)
        if answers is not None:
            logits = logits_in(output, len(batch.labels)).detach()
            check_finite(logits, batch.indices)
            answers.append((batch.indices, logits.to("cpu", torch.float64, copy=True)))
    except AmbiguousBatchError:
        if census.batch.counted:
            raise
        half = len(batch.indices) // 2
        halves = (batch.indices[:half], batch.indices[half:])
        parts = [part for half in halves for part in samples.batches(half, len(half))]
        return max((_run(model, samples, part, census, device, trial, answers) for part in parts), key=len)
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
    _check(all_finite(rows), layer)
    if layer in table:
        table[layer].add_(rows)
    else:
        table[layer] = Moments(rows)


def _check(finite: bool, layer: Layer) -> None:
    if not finite:
        raise DataError(
            f"the input of layer {layer.parameter!r} contains NaN or Inf; check the weights before it and the inputs"
        )


def moments_device(device: torch.device) -> torch.device:
    """Moments live where the model is, unless that device has no float64."""
    return torch.device("cpu") if device.type == "mps" else device

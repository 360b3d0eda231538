"""One pass of the uncorrected model over samples: the moments of every layer, per fold."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from verifix.capture.census import Account, Census
from verifix.capture.gather import gather_census_, gathered, gathered_moments, own_parts
from verifix.capture.interceptor import intercepting
from verifix.capture.kinds.lags import Geometry, Patches, PatchMoments
from verifix.capture.layer import Bias, Layer
from verifix.capture.memory_plan import LayerSize, Limits, MemoryPlan, planned, size_of
from verifix.capture.padding import Padding
from verifix.capture.row_sample import RowSample
from verifix.capture.selection import Selection
from verifix.capture.sharing import Layers
from verifix.capture.spilled_moments import Spill, SpilledTable
from verifix.errors import AmbiguousBatchError, DataError
from verifix.model import ranks
from verifix.model.nonfinite import check_finite
from verifix.model.predict import logits_in
from verifix.model.run import run_model, to_device
from verifix.model.samples import Samples
from verifix.model.sources import Batch
from verifix.moments import Moments, SharedRows, merge
from verifix.progress import progress_bar


def _no_logits() -> Tensor:
    return torch.empty(0, 0, dtype=torch.float64)


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
    remarks
        What is to be known of how they were collected.
    rows
        Of the layers that still hold them; see `sharing`.
    """

    folds: tuple[Mapping[Layer, Moments], ...]
    accounts: tuple[Account, ...]
    digests: frozenset[bytes] = field(default_factory=frozenset)
    padded: tuple[int, ...] = ()
    biases: Mapping[Layer, Bias] = field(default_factory=dict)
    buffers: Mapping[str, int] = field(default_factory=dict)
    logits: Tensor = field(default_factory=_no_logits)
    remarks: tuple[str, ...] = ()
    rows: Mapping[Layer, SharedRows] = field(default_factory=dict)

    @property
    def layers(self) -> list[Layer]:
        """The layers to correct, in the order of first use."""
        chosen = {layer for account in self.accounts if account.status == "corrected" for layer in account.layers}
        return [layer for layer in dict.fromkeys(itertools.chain(*self.folds)) if layer in chosen]

    def moments(self, layer: Layer, folds: Iterable[int], earlier: Mapping[Layer, Moments]) -> Moments:
        """Merge one layer's moments over some folds, and those of earlier samples."""
        # Adding the other folds up is total − fold without the cancellation: what none of them excites stays zero.
        numbers = [fold for fold in folds if layer in self.folds[fold]]
        if numbers and layer in self.rows and layer not in earlier:
            return self.rows[layer].merge(numbers)
        tables = [self.folds[fold] for fold in numbers] + [earlier] * (layer in earlier)
        if not tables:
            return next(table[layer] for table in self.folds if layer in table).empty()
        return merge(table[layer] for table in tables)  # one by one: they may wait in a file

    def sharing(self) -> Collected:
        """Return the same, to be merged over many sets of folds: what these share is worked out once."""
        made: dict[tuple[int, ...], SharedRows] = {}  # layers that see the same input have the same moments
        rows = {}
        for layer in self.layers:
            parts = [table.get(layer) for table in self.folds]
            if all(part is None or part.has_rows for part in parts):
                rows[layer] = made.get(own := tuple(map(id, parts))) or made.setdefault(own, SharedRows(parts))
        return replace(self, rows=rows)


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
    limits: Limits | None = None,
    show: bool = False,
    shared: bool = False,
    answered: bool = True,
) -> Collected:
    """Run a borrowed model over all folds, once unless memory is limited; batches never cross folds.

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
    limits
        What the moments may take; none by default.
    show
        Whether to show progress.
    shared
        Whether all processes of the run call this together, each for its share of the batches; see
        `verifix.model.ranks`.
    answered
        Whether `Collected.logits` are wanted, which may be large; else they are only checked.

    Returns
    -------
    Collected
        One set of moments per fold.

    Raises
    ------
    DataError
        If the rows of a layer or the answers are not finite.
    """
    sizes = [len(fold) for fold in folds]
    fewest = sum(sizes) - max(sizes) if len(sizes) > 1 else sum(sizes)  # samples that moments will be wanted of
    taking = _Taking(fewest, exact)
    selection, limits = selection or Selection(), limits or Limits()
    watched = intercepting(model, taking, selection, padding=padding)
    padded: tuple[int, ...] = ()
    answers: dict[int, Tensor] = {}
    with ranks.sharing() if shared else nullcontext(), progress_bar("moments", 1, show) as bar, watched as census:
        first, *others = (int(i) for fold in folds for i in fold)
        another = next((i for i in others if samples.digests[i] != samples.digests[first]), None)
        with ranks.alike():
            _run(model, samples, samples.alone(first), census, device, trial=1)  # shows what grows with the samples
            plan = planned(taking.sizes, sum(sizes), len(sizes), limits, census.shared)
            if census.untraced and another is not None:
                _run(model, samples, samples.alone(another), census, device, trial=2)
        spill = Spill(plan.in_file) if plan.in_file else None
        tables: list[Any] = [{} if spill is None else SpilledTable(spill) for _ in folds]
        parts = own_parts(folds, batch_size, of_each=spill is not None) if shared else folds
        taking.begin(plan, limits, sum(sizes))
        bar.total = plan.passes * sum(map(len, parts))
        for taking.turn in range(plan.passes):
            for part, fold, table in zip(parts, folds, tables, strict=True):
                taking.fold = _Fold()
                given: list[tuple[Sequence[int], Tensor]] = []
                for batch in census.aside(samples.batches(part, batch_size)):
                    padded = max(padded, _run(model, samples, batch, census, device, answers=given), key=len)
                    if not answered:
                        _checked(given)
                        given.clear()
                    bar.update(len(batch.labels))
                found = taking.moments()
                if shared and spill is not None:  # memory holds one fold at a time
                    (found,) = gathered_moments([found], moments_device(device))
                table.update(taking.condensed(found, len(fold)))
                answers.update(_checked(given))
    if shared and ranks.size() > 1:
        with ranks.sharing():
            gather_census_(census)
            answers, padded = gathered(answers, padded)
            if spill is None:
                tables = gathered_moments(tables, moments_device(device))
                tables = [taking.condensed(table, len(fold)) for table, fold in zip(tables, folds, strict=True)]
    accounts = tuple(census.accounts(model, selection))
    remarks = (plan.line,) * bool(plan.in_file)
    logits = torch.stack([answers[i] for i in sorted(answers)]) if answered else _no_logits()
    digests = frozenset(samples.digests)
    all_ = Collected(tuple(tables), accounts, digests, padded, census.biases, census.buffers, logits, remarks)
    return replace(all_, remarks=(*remarks, *taking.remarks(all_)))


@dataclass
class _Taking:
    """Takes in what the interceptor hands on: measures the layers first, then adds their rows to a fold's moments.

    Attributes
    ----------
    fewest
        Samples that moments will be wanted of, at least.
    exact
        Whether rows are multiplied in float64 in any case.
    sizes
        What the first sample brings to each layer.
    groups, turn
        The pass in which each layer's rows are taken in, and the pass that runs. Layers that the first sample did not
        show have the first.
    fold
        What is being collected; None before the first pass.
    sample
        Which rows are drawn; None for all.
    """

    fewest: int
    exact: bool
    sizes: dict[Layer, LayerSize] = field(default_factory=dict)
    groups: dict[Layer, int] = field(default_factory=dict)
    turn: int = 0
    fold: _Fold | None = None
    sample: RowSample | None = None

    def begin(self, plan: MemoryPlan, limits: Limits, samples: int) -> None:
        """Go over from measuring to the passes of a plan."""
        self.groups = {layer: turn for turn, group in enumerate(plan.groups) for layer in group}
        if limits.rows is not None:
            expected = {layer: size.rows * samples for layer, size in self.sizes.items()}
            self.sample = RowSample(limits.rows, expected, limits.seed)

    def waits(self, layer: Layer) -> bool:
        """Tell whether a layer has its turn in another pass."""
        return self.groups.get(layer, 0) != self.turn

    def called(self, layer: Layer) -> None:
        """Note the first use of a layer, whose rows may come later."""
        if self.fold is not None:
            self.fold.seen.setdefault(layer)

    def shares(self, layer: Layer) -> bool:
        """Tell whether a layer may be given together with others: not if each draws rows of its own."""
        return self.sample is None or not self.sample.thins(layer)

    def rows(self, layers: Layers, rows: Tensor) -> None:
        """Take in rows ``[groups, n, d_in]``."""
        if self.fold is None:
            self._measure(layers[0], rows.shape, rows.dtype)
        else:
            drawn = rows if self.sample is None else self.sample.draw(layers[0], rows)
            add_rows(self.fold.table, layers, drawn.double() if self.exact else drawn)

    def patches(self, layers: Layers, patches: Patches) -> bool:
        """Take in patches if they are better than rows; tell whether they are."""
        few = self.fewest * patches.geometry.positions < patches.shape[2]  # too few rows to go without them
        few = few or not self.shares(layers[0])
        if few or moments_device(patches.x.device) != patches.x.device or not patches.worthwhile:
            return False
        if self.fold is None:
            self._measure(layers[0], patches.shape, patches.x.dtype)
        else:
            self.fold.add_(layers, replace(patches, x=patches.x.double()) if self.exact else patches)
        return True

    def _measure(self, layer: Layer, shape: Sequence[int], dtype: torch.dtype) -> None:
        groups, rows, width = shape
        before = self.sizes[layer].rows if layer in self.sizes else 0
        itemsize = 8 if self.exact or dtype == torch.float64 else 4
        self.sizes[layer] = size_of(layer, groups, width, before + rows, itemsize)

    def moments(self) -> dict[Layer, Moments]:
        """Return the moments of what has been taken in of a fold."""
        assert self.fold is not None  # noqa: S101 - a pass has begun
        table = self.fold.moments()
        check_rows(table)
        return table

    def condensed(self, table: dict[Layer, Moments], samples: int) -> dict[Layer, Moments]:
        """Return the moments of a fold of so many samples; multiply rows out that are too many for the dual form."""
        for moments in table.values():
            if moments.n * self.fewest >= moments.width * samples:
                moments.condense_()
        return table

    def remarks(self, found: Collected) -> Iterator[str]:
        """Say how far moments of drawn rows are off."""
        layers = [layer for layer in found.layers if self.sample is not None and self.sample.thins(layer)]
        if self.sample is None or not layers:
            return
        every = range(len(found.folds))
        errors = {layer: self.sample.error(layer, found.moments(layer, every, {})) for layer in layers}
        worst = max(errors, key=errors.__getitem__)
        yield (
            f"The moments of {len(layers)} layers are made of about {self.sample.wanted} rows each, drawn at random: "
            f"they are off by about {statistics.median(errors.values()):.1%} of their size in the middle, and by "
            f"{errors[worst]:.1%} in {worst.parameter!r}."
        )


@dataclass
class _Fold:
    """The moments of one fold while they are collected: of rows, and of patches, that some layers see together."""

    seen: dict[Layer, None] = field(default_factory=dict)
    table: dict[Layers, Moments] = field(default_factory=dict)
    lags: dict[tuple[Layers, Geometry], PatchMoments] = field(default_factory=dict)

    def add_(self, layers: Layers, patches: Patches) -> None:
        """Add patches to the moments of their layers."""
        key = layers, patches.geometry
        if key in self.lags:
            self.lags[key].add_patches_(patches)
        else:
            self.lags[key] = PatchMoments(patches)

    def moments(self) -> dict[Layer, Moments]:
        """Return the moments of every layer, in the order of first use."""
        parts: dict[Layer, list[Moments]] = {layer: [] for layer in self.seen}
        of_patches = ((layers, found.condense_()) for (layers, _), found in self.lags.items())
        for layers, found in itertools.chain(self.table.items(), of_patches):
            for layer in layers:
                parts[layer].append(found)
        merged = {tuple(map(id, some)): some for some in parts.values() if some}  # once for layers that share them all
        whole = {key: merge(some) for key, some in merged.items()}
        return {layer: whole[tuple(map(id, some))] for layer, some in parts.items() if some}


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
        census.finish()
        if answers is not None:
            answers.append((batch.indices, logits_in(output, len(batch.labels)).detach().clone()))
    except AmbiguousBatchError:
        if census.batch.counted:
            raise
        half = len(batch.indices) // 2
        halves = (batch.indices[:half], batch.indices[half:])
        parts = [part for half in halves for part in samples.batches(half, len(half))]
        return max((_run(model, samples, part, census, device, trial, answers) for part in parts), key=len)
    return tuple(batch.indices) if census.batch.padded is not None else ()


def _checked(answers: Sequence[tuple[Sequence[int], Tensor]]) -> dict[int, Tensor]:
    """Return the logits of each sample, float64 on the CPU; refuse them if they are not finite."""
    indices = [int(i) for some, _ in answers for i in some]
    if not indices:
        return {}
    logits = torch.cat([part for _, part in answers]).to("cpu", torch.float64)
    check_finite(logits, indices)
    return dict(zip(indices, logits, strict=True))


def add_rows(table: dict[Any, Moments], layer: Layer | Layers, rows: Tensor) -> None:
    """Add rows ``[groups, n, d_in]`` to the moments of their layer, or of the layers that see them together."""
    rows = rows.to(moments_device(rows.device))
    if layer in table:
        table[layer].add_(rows)
    else:
        table[layer] = Moments(rows)


def check_rows(table: Mapping[Layer, Moments]) -> None:
    """Refuse moments of rows that are not finite: all layers in one question, since asking a GPU makes it wait."""
    finite = [torch.isfinite(moments.trace).all() for moments in table.values()]
    if not finite or bool(torch.stack([each.to(finite[0].device) for each in finite]).all()):
        return
    layer = next(layer for layer, each in zip(table, finite, strict=True) if not each)
    raise DataError(
        f"the input of layer {layer.parameter!r} contains NaN or Inf; check the weights before it and the inputs"
    )


def moments_device(device: torch.device) -> torch.device:
    """Moments live where the model is, unless that device has no float64."""
    return torch.device("cpu") if device.type == "mps" else device

"""What several processes have captured from their shares of the samples, put together in each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifix.capture.census import Census
from verifix.capture.layer import Layer
from verifix.model import ranks
from verifix.moments import Moments, merge


def own_parts(folds: Sequence[Sequence[int]], batch_size: int, *, of_each: bool = False) -> list[Sequence[int]]:
    """Return the part of each fold that this process runs: whole batches, the same that one process would run.

    Parameters
    ----------
    folds
        Indices of each fold.
    batch_size
        Samples per batch.
    of_each
        Whether each fold is shared among all, because they put one together before they begin the next.

    Returns
    -------
    list
        One part per fold, in the order of the fold; many are empty.
    """
    if of_each and len(folds) > 1:
        return [own_parts([fold], batch_size)[0] for fold in folds]
    places = [(k, start) for k, fold in enumerate(folds) for start in range(0, len(fold), batch_size)]
    own = ranks.share([len(folds[k][start : start + batch_size]) for k, start in places])
    mine = [places[i] for i in own]
    parts: list[Sequence[int]] = []
    for k, fold in enumerate(folds):
        starts = [start for number, start in mine if number == k]
        parts.append(fold[starts[0] : starts[-1] + batch_size] if starts else fold[:0])
    return parts


def gathered(answers: Mapping[int, Tensor], padded: tuple[int, ...]) -> tuple[dict[int, Tensor], tuple[int, ...]]:
    """Return the answers to all samples, by index, and the largest padded batch of all processes, the first of them."""
    own = torch.stack(list(answers.values())) if answers else None
    everyone = ranks.exchange((list(answers), own, padded))
    found = {i: row for indices, rows, _ in everyone if rows is not None for i, row in zip(indices, rows, strict=True)}
    return found, max((batch for *_, batch in everyone), key=len)


def gather_census_(census: Census) -> None:
    """Add to a census what the batches of other processes have shown of the model."""
    own = (census.layers, census.used_by, census.failures, census.buffers, census.added)
    for layers, used_by, failures, buffers, added in ranks.exchange(own):
        census.layers[:] = dict.fromkeys([*census.layers, *layers])
        for name, functions in used_by.items():
            census.used_by.setdefault(name, set()).update(functions)
        for layer, found in added.items():
            census.added.setdefault(layer, set()).update(found)
        census.failures.update(failures)
        census.buffers.update(buffers)


def gathered_moments(tables: Sequence[Mapping[Layer, Moments]], device: torch.device) -> list[dict[Layer, Moments]]:
    """Return the moments of the shares of all processes.

    Parameters
    ----------
    tables
        For each fold, the moments of this process's part of it, by layer.
    device
        Where moments live.

    Returns
    -------
    list of dict
        The same of the whole folds: rows in the order of the samples where all have kept rows and there are few, sums
        of XᵀX in float64 elsewhere.
    """
    if ranks.size() == 1:
        return [dict(table) for table in tables]
    seen = ranks.exchange([_forms(table) for table in tables])
    found: list[dict[Layer, Moments]] = []
    for k, table in enumerate(tables):
        layers = dict.fromkeys(layer for own in seen for layer in own[k])
        forms = {layer: tuple(own[k].get(layer) for own in seen) for layer in layers}
        whole: dict[object, Moments] = {}  # once for layers that share their moments in every process
        for layer, form in forms.items():
            if form not in whole:
                whole[form] = _gathered(table.get(layer), form, device)
        found.append({layer: whole[form] for layer, form in forms.items()})
    return found


@dataclass(frozen=True)
class _Form:
    """Rows, groups and width of moments, whether the rows have been multiplied already, and whose moments they are."""

    n: int
    groups: int
    width: int
    multiplied: bool
    owner: Layer


def _forms(table: Mapping[Layer, Moments]) -> dict[Layer, _Form]:
    owners: dict[int, Layer] = {}
    return {
        layer: _Form(x.n, x.groups, x.width, x.rows is None, owners.setdefault(id(x), layer))
        for layer, x in table.items()
    }


def _gathered(own: Moments | None, forms: Sequence[_Form | None], device: torch.device) -> Moments:
    """Return the moments of one layer and fold; each process has its own part, or none."""
    there = [form for form in forms if form is not None]
    n, groups, width = sum(form.n for form in there), there[0].groups, there[0].width
    if n < width and not any(form.multiplied for form in there):
        parts = ranks.exchange(own if own is None or device.type == "cpu" else own.to(torch.device("cpu")))
        merged = merge(part for part in parts if part is not None)
        return merged if device.type == "cpu" else merged.to(device)
    nothing = (groups, width, width)
    gram = torch.zeros(nothing, dtype=torch.float64, device=device) if own is None else own.condense_().gram
    return Moments.from_gram(ranks.sum_of_all(gram), n)

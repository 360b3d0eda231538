"""Try whether a padding mask reaches every layer: what stands in the padding must not change a single moment."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from verifix.capture.collect import add_rows, check_rows
from verifix.capture.interceptor import intercepting
from verifix.capture.kinds import RowMask
from verifix.capture.kinds.masks import REMEDY
from verifix.capture.layer import Layer
from verifix.capture.padding import NOT_IDS, OF_PADDING, Padding, RunningBatch
from verifix.capture.selection import Selection
from verifix.errors import DataError
from verifix.model.predict import as_logits
from verifix.model.run import Forward, run_model, to_device
from verifix.model.samples import Samples
from verifix.model.sources import Batch
from verifix.moments import Moments

MOMENTS_DIFFER = 1e-3
"""Relative difference from which on moments count as different."""

LOGITS_DIFFER = 1e-6
"""The same for logits: under a mask, padding has no influence at all, not a small one."""


def settle_padding(
    model: nn.Module,
    samples: Samples,
    indices: Sequence[int],
    *,
    device: torch.device,
    selection: Selection,
    padding: Padding,
) -> Padding:
    """Try a padded batch with different content in its padding, and find out which way round its masks are.

    The name of a mask of 0 and 1 says what models usually mean by it, and some mean the opposite. What a model leaves
    out has no influence on its logits: that tells which reading is right. A mask also finds itself in the inputs of
    layers by size, which can go wrong in models that sort, fold or flatten their tokens in a way of their own. Then
    rows of padding are counted, and change with its content although the logits do not.

    Parameters
    ----------
    model
        The borrowed model.
    samples
        The samples.
    indices
        Those of a padded batch.
    device
        Where the model is.
    selection
        Layers wanted.
    padding
        How padding was told in the pass that found this batch.

    Returns
    -------
    Padding
        How padding has to be told: as it was, or with some masks the other way round.

    Raises
    ------
    DataError
        If the logits depend on the padding whichever way its masks are read; if the moments of a layer depend on what
        stands in the padding, naming the first one.
    """
    batch = next(samples.batches(indices, len(indices)))

    def tried(reading: Padding) -> _Trial:
        return _try(model, batch, samples.forward, device, selection, reading)

    first = tried(padding)
    if first.counted is not None:
        raise DataError(
            f"layer {first.counted.parameter!r} counts rows of padding: its moments depend on the content of the "
            f"padding, although the logits do not; {REMEDY}"
        )
    if first.hidden is not False or not first.flags or not padding.required:
        return padding
    flags = sorted(first.flags)
    sets = itertools.chain.from_iterable(itertools.combinations(flags, n + 1) for n in range(len(flags)))
    for names in sets:
        other = replace(padding, inverted=padding.inverted ^ set(names))
        with suppress(DataError):  # a mask that does not fit the layers, read so
            if tried(other).hidden:
                return other
    if not first.flags & {*OF_PADDING}:
        return replace(padding, visible=first.flags)  # 1 for tokens is what all models mean that are known by this name
    raise DataError(
        f"the answers depend on what stands in the padding, whichever way {' and '.join(map(repr, flags))} is read, so "
        "it is unclear which rows count; give samples without padding (batches of one need none), or set "
        "padding=False (--no-padding) to read the mask by its name"
    )


@dataclass(frozen=True)
class _Trial:
    """What came of a batch with other content in its padding.

    Attributes
    ----------
    hidden
        Whether the padding is hidden from the logits; None if nothing can be concluded.
    flags
        Names of the masks that could mean the opposite.
    counted
        The first layer that counts rows of the padding although it is hidden; None if there is none.
    """

    hidden: bool | None
    flags: frozenset[str] = frozenset()
    counted: Layer | None = None


def _try(
    model: nn.Module,
    batch: Batch,
    forward: Forward | None,
    device: torch.device,
    selection: Selection,
    padding: Padding,
) -> _Trial:
    """Run a batch twice, the second time with other content in what `padding` takes for padding."""

    def captured(inputs: Any) -> tuple[Tensor, dict[Layer, Moments], RunningBatch]:
        table: dict[Layer, Moments] = {}
        with intercepting(model, lambda x, rows: add_rows(table, x, rows), selection, padding=padding) as census:
            census.begin(len(batch.labels))
            output = run_model(model, to_device(inputs, device), forward)
            check_rows(table)
            return as_logits(output, len(batch.labels)), table, census.batch

    logits, moments, seen = captured(batch.inputs)
    mask, flags = seen.padded, frozenset(seen.flags)
    if mask is None or not mask.of_samples.any():
        return _Trial(mask is None, flags)  # nothing is hidden, or nothing would be left
    others = with_other_padding(batch.inputs, mask)
    try:
        again, changed, seen = captured(others) if others is not None else (logits, {}, seen)
    except DataError:  # a model that checks what it is given, such as the number of its end tokens
        others = None
    if others is None or not _same(mask, seen.padded):  # a model that makes the mask of its inputs has another one now
        return _Trial(None, flags)
    hidden = not _differ(logits, again, LOGITS_DIFFER)
    counted = (layer for layer in moments if _counts_padding(moments[layer], changed.get(layer)))
    return _Trial(hidden, flags, next(counted, None) if hidden else None)


def _same(mask: RowMask, other: RowMask | None) -> bool:
    """Whether two masks mark the same tokens."""
    return other is not None and all(other.is_of(own) for own in mask.by_tokens.values())


def _counts_padding(before: Moments, after: Moments | None) -> bool:
    """Whether moments differ although only padding does."""
    return after is None or before.n != after.n or _differ(_content(before), _content(after), MOMENTS_DIFFER)


def with_other_padding(inputs: Any, mask: RowMask) -> Any | None:
    """Put other content in place of the padding.

    Parameters
    ----------
    inputs
        A tensor, or a tuple or dictionary of tensors, with axes ``[samples, tokens, …]``.
    mask
        Where the padding is.

    Returns
    -------
    object
        Inputs of the same form; None if no tensor in them has the axes of the mask.
    """
    items = dict(inputs) if isinstance(inputs, Mapping) else dict(enumerate(_as_sequence(inputs)))
    changed = {name: _other(x, mask) for name, x in items.items() if name not in NOT_IDS and isinstance(x, Tensor)}
    if all(changed[name] is items[name] for name in changed):
        return None
    items |= changed
    if isinstance(inputs, Mapping):
        return items
    return items[0] if isinstance(inputs, Tensor) else list(items.values())


def _as_sequence(inputs: Any) -> Sequence[Any]:
    return [inputs] if isinstance(inputs, Tensor) else inputs


def _other(x: Tensor, mask: RowMask) -> Tensor:
    """Fill the padding with a sample's own content, drawn at random from all real tokens."""
    found = None if x.is_nested else _mask_of(x, mask)
    if found is None or bool(found.all()) or not bool(found.any()) or _is_mask(x, found):
        return x
    real = _ordinary(x, found)
    draw = torch.randint(len(real), (int((~found).sum()),), generator=torch.Generator().manual_seed(0))
    other = x.clone()
    other[~found] = real[draw]
    return other


def _ordinary(x: Tensor, mask: Tensor) -> Tensor:
    """Return the real tokens, without ids that stand in every sample: marks of beginning and end."""
    real = x[mask]
    if x.is_floating_point() or x.ndim > 2:
        return real
    marks = [value for value in real.unique() if bool(((x == value) & mask).any(dim=1).all())]
    plain = real[~torch.isin(real, torch.stack(marks))] if marks else real
    return plain if len(plain) else real


def _is_mask(x: Tensor, mask: Tensor) -> bool:
    """Tell the mask itself, in whatever form and under whatever name, from content."""
    return x.shape == mask.shape and any(torch.equal(x == value, mask) for value in (0, 1))


def _mask_of(x: Tensor, mask: RowMask) -> Tensor | None:
    """Find the mask in a tensor's own axes; ids may be ``[samples, parts, tokens]``."""
    if x.ndim >= 2 and len(x) == mask.samples:
        return mask.by_tokens.get(x.shape[1])
    ids = not x.is_floating_point() and x.ndim >= 2 and x.shape[:-1].numel() == mask.samples
    own = mask.by_tokens.get(x.shape[-1]) if ids else None
    return None if own is None else own.reshape(x.shape)


def _content(moments: Moments) -> Tensor:
    return moments.gram if moments.rows is None else moments.rows


def _differ(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape != b.shape or float((a - b).norm()) > tolerance * max(float(a.norm()), 1e-12)

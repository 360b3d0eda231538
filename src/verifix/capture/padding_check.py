"""Try whether a padding mask reaches every layer: what stands in the padding must not change a single moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from verifix.capture.collect import add_rows
from verifix.capture.interceptor import intercepting
from verifix.capture.kinds import RowMask
from verifix.capture.kinds.masks import REMEDY
from verifix.capture.layer import Layer
from verifix.capture.padding import NOT_IDS
from verifix.capture.selection import Selection
from verifix.errors import DataError
from verifix.model.predict import as_logits
from verifix.model.run import run_model, to_device
from verifix.model.samples import Samples
from verifix.moments import Moments

MOMENTS_DIFFER = 1e-3
"""Relative difference from which on moments count as different."""

LOGITS_DIFFER = 1e-6
"""The same for logits: under a mask, padding has no influence at all, not a small one."""


def check_padding(
    model: nn.Module,
    samples: Samples,
    indices: Sequence[int],
    *,
    device: torch.device,
    selection: Selection,
    padding: bool,
) -> None:
    """Run a padded batch twice, with different content in its padding.

    A mask finds itself in the inputs of layers by size, which can go wrong in models that sort, fold or flatten their
    tokens in a way of their own. Then rows of padding are counted, and change with its content although the logits do
    not.

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
        Whether token ids that contain the model's pad id need a mask.

    Raises
    ------
    DataError
        Naming the first layer whose moments depend on what stands in the padding.
    """
    batch = next(samples.batches(indices, len(indices)))

    def captured(inputs: Any) -> tuple[Tensor, dict[Layer, Moments], RowMask | None]:
        table: dict[Layer, Moments] = {}
        with intercepting(model, lambda x, rows: add_rows(table, x, rows), selection, padding=padding) as census:
            census.begin(len(batch.labels))
            output = run_model(model, to_device(inputs, device), samples.forward)
            return as_logits(output, len(batch.labels)), table, census.batch.padded

    logits, moments, mask = captured(batch.inputs)
    others = None if mask is None else with_other_padding(batch.inputs, mask)
    if others is None:
        return
    try:
        again, changed, _ = captured(others)
    except DataError:
        return  # a model that checks what it is given, such as the number of its end tokens
    if _differ(logits, again, LOGITS_DIFFER):
        return  # the model itself sees its padding, so that nothing can be concluded
    for layer, before in moments.items():
        after = changed.get(layer)
        if after is None or before.n != after.n or _differ(_content(before), _content(after), MOMENTS_DIFFER):
            raise DataError(
                f"layer {layer.parameter!r} counts rows of padding: its moments depend on the content of the padding, "
                f"although the logits do not; {REMEDY}"
            )


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
    if found is None or bool(found.all()) or _is_mask(x, found):
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

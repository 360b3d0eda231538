"""``nn.MultiheadAttention``: its fused input projections and its output projection."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from verifix.capture.kinds.base import Product, RowMajor, chunked
from verifix.capture.kinds.masks import RowMask
from verifix.model.tensors import storage_of

Mask = Callable[[], Tensor] | None
"""Returns which rows count, bool ``[tokens, samples]``; None for all. Called only if the rows are wanted."""

_SIGNATURE = inspect.signature(F.multi_head_attention_forward)


class Attention(RowMajor):
    """``F.multi_head_attention_forward``: query, key, value and output projections.

    The input projection is one layer if query, key and value are the same rows, else three. The rows of the output
    projection exist only inside the function, where they are seen as it runs. Should they not be, calling the function
    with the identity as output projection returns them.
    """

    name = "attention"
    functions = (F.multi_head_attention_forward,)

    def products(self, args: Sequence[Any], kwargs: Mapping[str, Any], keep: RowMask | None) -> Iterable[Product]:
        """Name the input projections and the output projection; see `LayerKind`."""
        bound = _SIGNATURE.bind(*args, **kwargs)
        bound.apply_defaults()
        call = bound.arguments
        of_keys = _own_mask(call) if call["key_padding_mask"] is not None else _mask_at(call["key"], keep)
        of_queries = of_keys if call["query"] is call["key"] else _mask_of_queries(call, of_keys, keep)
        start, own = 0, set()
        for weight, x, mask in _inputs(call, of_queries, of_keys):
            bias = None if call["in_proj_bias"] is None else call["in_proj_bias"][start : start + len(weight)]
            start += len(weight)
            own.add(storage_of(weight))
            yield Product(weight, 1, _reader(x, mask), bias=bias, source=(x, (self.name, mask)))
        weight, steps = call["out_proj_weight"], call["query"].shape[:-1]

        def within(x: Tensor) -> Iterator[Tensor]:
            return _rows(x.reshape(*steps, x.shape[-1]), of_queries)

        yield Product(
            weight,
            1,
            lambda: _rows(_before_output(bound), of_queries),
            bias=call["out_proj_bias"],
            within=None if storage_of(weight) in own else within,  # else it may meet other inputs as well
        )


def _inputs(call: Mapping[str, Any], of_queries: Mask, of_keys: Mask) -> Iterator[tuple[Tensor, Tensor, Mask]]:
    """Name each input weight with its input and mask."""
    query, key, value = call["query"], call["key"], call["value"]
    if call["use_separate_proj_weight"]:
        yield call["q_proj_weight"], query, of_queries
        yield call["k_proj_weight"], key, of_keys
        yield call["v_proj_weight"], value, of_keys
    elif query is key and key is value:
        yield call["in_proj_weight"], query, of_keys
    else:
        masks = (of_queries, of_keys, of_keys)
        yield from zip(call["in_proj_weight"].chunk(3), (query, key, value), masks, strict=True)


def _own_mask(call: Mapping[str, Any]) -> Mask:
    """Return the call's own padding mask ``[samples, keys]`` (True, or −∞, for padding), tokens first."""
    padding: Tensor = call["key_padding_mask"]
    real = padding >= 0 if padding.is_floating_point() else ~padding.bool()
    mask = real.T if real.ndim == 2 else real
    return lambda: mask


def _mask_at(x: Tensor, keep: RowMask | None) -> Mask:
    """Find the mask of the batch in ``[tokens, samples, d]``, where the order of axes is known."""
    if keep is None:
        return None
    return lambda: keep.at_steps(x.shape[:-1])


def _mask_of_queries(call: Mapping[str, Any], of_keys: Mask, keep: RowMask | None) -> Mask:
    """Take the batch's mask for queries; without one, that of the keys if they are as many."""
    query, key = call["query"], call["key"]
    if keep is None and call["key_padding_mask"] is not None and query.shape[:-1] == key.shape[:-1]:
        return of_keys
    return _mask_at(query, keep)


def _reader(x: Tensor, mask: Mask) -> Callable[[], Iterator[Tensor]]:
    return lambda: _rows(x, mask)


def _rows(x: Tensor, mask: Mask) -> Iterator[Tensor]:
    """Yield the rows of ``[tokens, samples, d]``, or of ``[tokens, d]`` for a single sample."""
    rows = x.reshape(-1, x.shape[-1]) if mask is None else x[mask().to(x.device)]
    yield from chunked(rows.unsqueeze(0))


def _before_output(bound: inspect.BoundArguments) -> Tensor:
    """Run the attention up to its output projection."""
    weight = bound.arguments["out_proj_weight"]
    inner = inspect.BoundArguments(_SIGNATURE, bound.arguments.copy())
    inner.arguments |= {
        "out_proj_weight": torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device),
        "out_proj_bias": None,
        "need_weights": False,
        "training": False,
    }
    result: Tensor = F.multi_head_attention_forward(*inner.args, **inner.kwargs)[0]
    return result

"""Where padding masks enter a model, and padding that came without one.

A mask is found by the name that the field gives it, in the arguments of the model or of a module inside it, whatever
way the batch was handed over. A module that is given a mask of its own (an encoder whose tokens were thinned out, a
decoder beside an encoder) has it while it runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from verifix.errors import DataError
from verifix.layers import RowMask

OF_TOKENS = ("attention_mask",)
"""Masks that are 1 or True for tokens."""

OF_PADDING = ("src_key_padding_mask", "tgt_key_padding_mask", "padding_mask")
"""Masks that are True (or −∞) for padding."""

NOT_IDS = {"token_type_ids", "position_ids", "labels", "head_mask", "bbox", *OF_TOKENS, *OF_PADDING}
"""Integer arguments that are no token ids."""


class AmbiguousBatchError(DataError):
    """A padded batch with as many samples as tokens; it has to run in parts."""


class RunningBatch:
    """Which rows of the batch that runs count.

    Attributes
    ----------
    samples
        Samples in the batch; None if it is not known.
    keep
        The mask in force; None if every row counts.
    pad
        The pad id that the batch contains, as long as no mask has come; None if there is nothing to fear.
    counted
        Whether rows have been counted already.
    """

    def __init__(self) -> None:
        self.samples: int | None = None
        self.keep: RowMask | None = None
        self.pad: int | None = None
        self.counted = False
        self._outer: list[RowMask | None] = []

    def begin(self, samples: int | None) -> None:
        """Forget the last batch."""
        self.samples, self.keep, self.pad, self.counted = samples, None, None, False
        self._outer.clear()

    def enter(self, mask: Tensor | None) -> None:
        """Note that a module begins to run, with or without a mask of its own."""
        self._outer.append(self.keep)
        if mask is not None:
            self.pad = None
            self.keep = None if mask.all() else RowMask(mask)
            if self.keep is not None and self.keep.ambiguous:
                raise (DataError if self.counted else AmbiguousBatchError)(
                    f"a padded batch of {self.samples} samples with {mask.shape[1]} tokens each cannot be masked "
                    "safely; choose another batch_size"
                )

    def leave(self) -> None:
        """Note that the module has run; where there is no outer mask, what follows is under its mask still."""
        self.keep = self._outer.pop() or self.keep


@contextmanager
def watching_padding(model: nn.Module, batch: RunningBatch, *, padding: bool) -> Iterator[None]:
    """Keep a running batch informed of the masks that modules receive.

    Parameters
    ----------
    model
        The model; its hooks are as before when the context ends.
    batch
        Is told.
    padding
        Whether ids that contain the model's pad id need a mask.

    Yields
    ------
    None
    """
    pads = pad_ids(model) if padding else frozenset()
    with ExitStack() as stack:
        for module in dict.fromkeys((model, *model.modules())):
            signature = _signature(module)
            names = set(signature.parameters) & {*OF_TOKENS, *OF_PADDING}
            if module is not model and not names:
                continue

            def enter(module: nn.Module, args: Any, kwargs: Any, signature: inspect.Signature = signature) -> None:
                given = _named(signature, args, kwargs)
                mask = _mask_in(given, batch.samples)
                if module is model and mask is None:
                    batch.pad = _pad_in(given, pads)
                batch.enter(mask)

            def leave(*_: Any) -> None:
                batch.leave()

            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield


def pad_ids(model: nn.Module) -> frozenset[int]:
    """Return the ids that stand for padding: of the model's own configuration, else of its embeddings."""
    configured = getattr(getattr(model, "config", None), "pad_token_id", None)
    if isinstance(configured, int):
        return frozenset({configured})
    found = (module.padding_idx for module in model.modules() if isinstance(module, nn.Embedding))
    return frozenset(i for i in found if i is not None)


def _signature(module: nn.Module) -> inspect.Signature:
    try:
        return inspect.signature(module.forward)
    except (TypeError, ValueError):
        return inspect.Signature()


def _named(signature: inspect.Signature, args: Any, kwargs: Any) -> dict[str, Any]:
    """Give a call's arguments their names, as far as the signature knows them."""
    try:
        bound = signature.bind_partial(*args, **kwargs)
    except TypeError:
        return dict(kwargs)
    given: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD or (isinstance(value, Mapping) and len(bound.arguments) == 1):
            given |= value
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            given |= {f"{name}[{i}]": part for i, part in enumerate(value)}
        else:
            given[name] = value
    return given


def _mask_in(given: Mapping[str, Any], samples: int | None) -> Tensor | None:
    """Return the first mask ``[samples, tokens]`` among named arguments, True for what counts."""
    for name in (*OF_TOKENS, *OF_PADDING):
        mask = given.get(name)
        if isinstance(mask, Tensor) and mask.ndim == 2 and (samples is None or len(mask) == samples):
            if name in OF_PADDING:
                return mask >= 0 if mask.is_floating_point() else ~mask.bool()
            if bool(((mask == 0) | (mask == 1)).all()):
                return mask.bool()
    return None


def _pad_in(given: Mapping[str, Any], pads: frozenset[int]) -> int | None:
    """Return the pad id that the token ids contain, if they do."""
    candidates = [given["input_ids"]] if "input_ids" in given else [v for k, v in given.items() if k not in NOT_IDS]
    for ids in candidates:
        if isinstance(ids, Tensor) and ids.ndim == 2 and ids.dtype in (torch.int64, torch.int32):
            return next((pad for pad in sorted(pads) if bool((ids == pad).any())), None)
    return None

"""Where padding masks enter a model, and padding that came without one.

A mask is found by the name that the field gives it, in the arguments of the model or of a module inside it, whatever
way the batch was handed over. A module that is given a mask of its own (an encoder whose tokens were thinned out, a
decoder beside an encoder) has it while it runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from verifix.capture.kinds import RowMask
from verifix.errors import AmbiguousBatchError, DataError

OF_TOKENS = ("attention_mask",)
"""Masks that are 1 or True for tokens."""

OF_PADDING = ("src_key_padding_mask", "tgt_key_padding_mask", "padding_mask")
"""Masks that are True (or −∞) for padding."""

NOT_IDS = {"token_type_ids", "position_ids", "labels", "head_mask", "bbox", *OF_TOKENS, *OF_PADDING}
"""Integer arguments that are no token ids."""


@dataclass(frozen=True)
class Padding:
    """How padding is told from tokens.

    Attributes
    ----------
    required
        Whether token ids that contain the model's pad id need a mask, and no mask may be contradicted by the logits.
    inverted
        Names of masks of 0 and 1 that mean the opposite of what models usually mean by this name.
    visible
        Names of masks of 0 and 1 that do not hide everything that they mark from the answers.
    """

    required: bool = True
    inverted: frozenset[str] = frozenset()
    visible: frozenset[str] = frozenset()


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
    padded
        The first mask with padding in the batch.
    flags
        Names of the masks of 0 and 1 in the batch; only their name says which of the two is padding.
    """

    def __init__(self) -> None:
        self.samples: int | None = None
        self.keep: RowMask | None = None
        self.pad: int | None = None
        self.counted = False
        self.padded: RowMask | None = None
        self.flags: set[str] = set()
        self._outer: list[RowMask | None] = []
        self._last: RowMask | None = None

    def begin(self, samples: int | None) -> None:
        """Forget the last batch."""
        self.samples, self.keep, self.pad, self.counted = samples, None, None, False
        self.padded = self._last = None
        self.flags = set()
        self._outer.clear()

    def enter(self, mask: Tensor | None, *, unmasked: bool = False) -> None:
        """Note that a module begins to run.

        Parameters
        ----------
        mask
            Its own mask, True for tokens that count; None if it has none, so that the one in force stays.
        unmasked
            Whether its tokens are known to be others than those of the mask in force.

        Raises
        ------
        AmbiguousBatchError
            If there are as many samples as tokens.
        """
        self._outer.append(self.keep)
        if mask is None:
            self.keep = None if unmasked else self.keep
            return
        self.pad = None
        self.keep = None if mask.all() else self.known(mask) or RowMask(mask)
        self.padded = self.padded or self.keep
        if self.keep is not None and self.keep.ambiguous:
            raise AmbiguousBatchError(
                f"a padded batch of {self.samples} samples with {mask.shape[1]} tokens each cannot be masked "
                "safely; choose another batch_size"
            )

    def leave(self, *, outermost: bool) -> None:
        """Note that the module has run; where there is no outer mask, what follows is under its mask still."""
        if not self._outer:
            return  # the module was refused before it ran
        inner, outer = self.keep, self._outer.pop()
        if outermost:
            self.keep = self._last = None
            return
        if outer is None and inner is not None:
            if self._last is not None and self._last is not inner:
                inner.learn(self._last)
            self._last = inner
        elif outer is not None and inner is not None:
            outer.learn(inner)
        self.keep = outer or inner

    def known(self, mask: Tensor) -> RowMask | None:
        """Return the mask in force if it is this one: a module often hands it on to the next."""
        return self.keep if self.keep is not None and self.keep.is_of(mask) else None


@contextmanager
def watching_padding(model: nn.Module, batch: RunningBatch, padding: Padding) -> Iterator[None]:
    """Keep a running batch informed of the masks that modules receive.

    Parameters
    ----------
    model
        The model; its hooks are as before when the context ends.
    batch
        Is told.
    padding
        How padding is told.

    Yields
    ------
    None
    """
    pads = pad_ids(model) if padding.required else frozenset()
    with ExitStack() as stack:
        for module in dict.fromkeys((model, *model.modules())):
            signature = _signature(module)
            names = set(signature.parameters) & {*OF_TOKENS, *OF_PADDING}
            if module is not model and not names:
                continue

            def enter(module: nn.Module, args: Any, kwargs: Any, signature: inspect.Signature = signature) -> None:
                given = _named(signature, args, kwargs)
                own = type(module).__module__.startswith("torch.nn.")  # its documentation says what its masks mean
                inverted = frozenset[str]() if own else padding.inverted
                mask, flag = _mask_in(given, batch.samples, inverted, outermost=module is model)
                if own and mask is not None and batch.known(mask) is not None:
                    batch.flags.clear()  # it is handed on to where its meaning is certain
                batch.flags |= {flag} if flag and not own else set()
                if module is model:
                    _check_decoder(given, mask)
                    batch.pad = _pad_in(given, pads) if mask is None else None
                others = module is not model and "tgt_key_padding_mask" in signature.parameters
                batch.enter(mask, unmasked=others and mask is None)

            def leave(module: nn.Module, *_: Any) -> None:
                batch.leave(outermost=module is model)

            stack.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield


def pad_ids(model: nn.Module) -> frozenset[int]:
    """Return the ids that stand for padding: of the model's configurations, else of its embeddings."""
    configured = {
        pad
        for module in model.modules()
        if isinstance(pad := getattr(getattr(module, "config", None), "pad_token_id", None), int)
    }
    found = (module.padding_idx for module in model.modules() if isinstance(module, nn.Embedding))
    return frozenset(configured) or frozenset(i for i in found if i is not None)


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
        if kind is inspect.Parameter.VAR_KEYWORD or isinstance(value, Mapping):
            given |= value
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            given |= {f"{name}[{i}]": part for i, part in enumerate(value)}
        else:
            given[name] = value
    return given


def _mask_in(
    given: Mapping[str, Any], samples: int | None, inverted: frozenset[str], *, outermost: bool
) -> tuple[Tensor | None, str]:
    """Return the first mask ``[samples, tokens]``, True for what counts, and its name if that decides what it means."""
    for name in (*OF_TOKENS, *OF_PADDING):
        mask = given.get(name)
        if not isinstance(mask, Tensor):
            continue
        real, certain = _real_tokens(mask, inverted=(name in OF_PADDING) != (name in inverted))
        if real is not None and (len(mask) == samples or _fits(real, samples)):
            return real, "" if certain else name
        if outermost:
            raise DataError(
                f"{name} has shape {list(mask.shape)} and {mask.dtype}, which is not a token mask of {samples} "
                "samples; give it as [samples, tokens] of 0 and 1"
            )
    return None, ""


def _real_tokens(mask: Tensor, *, inverted: bool) -> tuple[Tensor | None, bool]:
    """Read a mask in any of its forms as bool ``[samples, tokens]``, None if it is none; tell whether it is certain."""
    if mask.ndim == 4 and mask.shape[1] == mask.shape[2] == 1:
        mask = mask[:, 0, 0]
    if mask.ndim < 2 or mask.ndim > 3:
        return None, False
    flat = mask.flatten(0, -2)  # [samples, choices, tokens] are as many texts
    additive = flat.is_floating_point() and bool((flat <= 0).all()) and not (inverted and bool((flat == 0).all()))
    if additive:
        return flat > -1, bool((flat < 0).any())
    if not bool(((flat == 0) | (flat == 1)).all()):
        return None, False
    return flat == 0 if inverted else flat == 1, False


def _fits(mask: Tensor, samples: int | None) -> bool:
    """Tell a mask of the batch's samples, or of several parts of each, from one of tokens by tokens."""
    count, tokens = mask.shape
    return samples is None or count == samples or (count % samples == 0 and count != tokens)


def _check_decoder(given: Mapping[str, Any], mask: Tensor | None) -> None:
    """Refuse tokens of a decoder, beside a padded encoder, of which nothing says whether they are padded."""
    own = given.get("decoder_input_ids") is not None and given.get("decoder_attention_mask") is None
    if own and mask is not None and not bool(mask.all()):
        raise DataError(
            "a padded batch has decoder_input_ids but no decoder_attention_mask; pass it (all ones if the ids "
            "contain no padding)"
        )


def _pad_in(given: Mapping[str, Any], pads: frozenset[int]) -> int | None:
    """Return the pad id that the token ids contain, if they do."""
    candidates = [given["input_ids"]] if "input_ids" in given else [v for k, v in given.items() if k not in NOT_IDS]
    for ids in candidates:
        if isinstance(ids, Tensor) and ids.ndim >= 2 and ids.dtype in (torch.int64, torch.int32):
            found = next((pad for pad in sorted(pads) if bool((ids == pad).any())), None)
            if found is not None:
                return found
    return None


def remarks_on_padding(padding: Padding) -> list[str]:
    """Say which masks are read the other way round than models usually mean them."""
    turned = "{} is read the other way round than usual: only then the answers do not depend on what it hides."
    seen = "The answers depend on what {} hides; it is read as usual, and what it hides does not count."
    return [
        *(turned.format(name) for name in sorted(padding.inverted)),
        *(seen.format(name) for name in sorted(padding.visible)),
    ]

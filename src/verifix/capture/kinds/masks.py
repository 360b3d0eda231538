"""Which rows count: padding is left out of the moments, wherever a layer carries its tokens."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from verifix.errors import DataError

REMEDY = "give samples without padding (batches of one need none), or exclude this layer"


class RowMask:
    """Which samples, or which tokens of them, count.

    A layer inside a model sees its tokens in many layouts: ``[samples, tokens, …]``, ``[tokens, samples, …]``, with
    heads between them, flattened, or pooled to one row per sample. A mask finds itself in each of them by size. Sizes
    can coincide only where a batch has as many samples as tokens, and such batches are split before they run.

    Parameters
    ----------
    mask
        Bool ``[samples]`` or ``[samples, tokens]``; True for what counts.
    """

    def __init__(self, mask: Tensor) -> None:
        self.by_tokens: dict[int, Tensor] = {}
        self.disputed: set[int] = set()
        self.lenient = False
        self.samples = len(mask)
        self.of_samples = mask.bool() if mask.ndim == 1 else mask.bool().any(dim=1)
        if mask.ndim == 2:
            self.add(mask.bool())

    def add(self, mask: Tensor) -> None:
        """Add the same samples' mask ``[samples, tokens]`` at another number of tokens, such as after a convolution."""
        self.by_tokens.setdefault(mask.shape[1], mask)

    def is_of(self, mask: Tensor) -> bool:
        """Whether it was made from, or has learned, exactly this mask ``[samples, tokens]``."""
        same = self.by_tokens.get(mask.shape[1])
        return same is not None and torch.equal(same, mask)

    def for_constants(self) -> RowMask:
        """Return a mask for inputs that no sample has a part in: what has other axes counts in full."""
        other = copy.copy(self)
        other.lenient = True
        return other

    def learn(self, other: RowMask) -> None:
        """Take over what a mask of the same samples has learned about other numbers of tokens."""
        for tokens, mask in other.by_tokens.items():
            known = self.by_tokens.get(tokens)
            if known is not None and not torch.equal(known, mask):
                self.disputed.add(tokens)  # two sets of tokens of one size: which is meant cannot be told
            elif other.samples == self.samples:
                self.add(mask)

    @property
    def ambiguous(self) -> bool:
        """Whether the batch has as many samples as tokens, so that its axes cannot be told apart by size."""
        return self.samples > 1 and self.samples in self.by_tokens

    def at(self, axes: Sequence[int]) -> Tensor:
        """Return which rows count among those on some leading axes.

        Parameters
        ----------
        axes
            Sizes of all axes of an input but its last.

        Returns
        -------
        Tensor
            Bool, of exactly this shape.

        Raises
        ------
        DataError
            If the mask cannot be found in these axes.
        """
        shape = torch.Size(axes)
        found = self._tokens_in(shape) if self.by_tokens else None
        if found is None:
            found = self._samples_in(shape)
        if found is None and self.lenient:
            return self.of_samples.new_ones(shape)
        if found is None:
            own = [self.samples, *self.by_tokens]
            raise DataError(
                f"an input with the leading axes {list(shape)} does not fit the padding mask of {own[0]} samples"
                f"{' and ' + ' or '.join(map(str, own[1:])) + ' tokens' if own[1:] else ''}; "
                f"{REMEDY}"
            )
        return found.reshape(found.shape + (1,) * (len(shape) - found.ndim)).expand(shape)

    def at_steps(self, axes: Sequence[int]) -> Tensor:
        """Return which rows count on axes that are known to be ``[tokens, samples]``; see `at`."""
        if tuple(axes) == (1, self.samples):
            return self.of_samples[None]
        own = None if axes[0] in self.disputed else self.by_tokens.get(axes[0])
        return own.T if own is not None and tuple(axes[1:]) == (self.samples,) else self.at(axes)

    def _tokens_in(self, shape: torch.Size) -> Tensor | None:
        """Find samples and tokens in the first three axes, in any of the usual orders."""
        candidates = (_flat,) if len(shape) == 1 else (_leading, _with_heads)
        for tokens, own in self.by_tokens.items():
            mask = next((m for look in candidates if (m := look(shape, own)) is not None), None)
            if mask is not None and tokens in self.disputed:
                raise DataError(f"two masks of {tokens} tokens differ, so it is unclear which one applies; {REMEDY}")
            if mask is not None:
                return mask
        return None

    def _samples_in(self, shape: torch.Size) -> Tensor | None:
        """Find samples alone: pooled rows, or one mask per sample."""
        pooled = len(shape) == 1 or shape[1:2] == (1,) or not self.by_tokens
        return self.of_samples if shape[:1] == (self.samples,) and pooled else None


def _flat(shape: torch.Size, mask: Tensor) -> Tensor | None:
    """Find ``[samples · tokens]``, or the tokens that count alone, if the model has left the others out by itself."""
    if shape[0] == mask.numel():
        return mask.reshape(-1)
    return mask.new_ones(shape) if shape[0] == int(mask.sum()) and shape[0] != len(mask) else None


def _leading(shape: torch.Size, mask: Tensor) -> Tensor | None:
    """Find ``[samples, tokens, …]`` or ``[tokens, samples, …]``."""
    samples, tokens = mask.shape
    if shape[:3] == (samples, tokens, tokens):
        return None  # tokens by tokens, or as many heads as tokens: not to be told apart
    if shape[:2] == (samples, tokens):
        return mask
    return mask.T if shape[:2] == (tokens, samples) else None


def _with_heads(shape: torch.Size, mask: Tensor) -> Tensor | None:
    """Find ``[samples, heads, tokens, …]``."""
    samples, tokens = mask.shape
    found = len(shape) >= 3 and (shape[0], shape[2]) == (samples, tokens) and shape[1] != tokens
    return mask[:, None].expand(shape[:3]) if found else None


def kept_rows(x: Tensor, keep: RowMask | None) -> Tensor:
    """Flatten an input ``[..., d]`` to its rows ``[n, d]``, leaving out what the mask leaves out.

    Parameters
    ----------
    x
        A layer's input. A nested tensor has no padding, so all of its rows count.
    keep
        Which rows count; None for all.

    Returns
    -------
    Tensor
        The rows.

    Raises
    ------
    DataError
        If the mask does not fit the axes of `x`.
    """
    if x.is_nested:
        return torch.cat([part.reshape(-1, part.shape[-1]) for part in x.unbind()])
    if keep is None:
        return x.reshape(-1, x.shape[-1])
    return x[keep.at(x.shape[:-1]).to(x.device)]

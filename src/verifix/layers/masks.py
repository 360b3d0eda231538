"""Which rows count: padding is left out of the moments, wherever a layer carries its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from verifix.errors import DataError


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
        self.samples = len(mask)
        self.of_samples = mask.bool() if mask.ndim == 1 else mask.bool().any(dim=1)
        if mask.ndim == 2:
            self.add(mask.bool())

    def add(self, mask: Tensor) -> None:
        """Add the same samples' mask ``[samples, tokens]`` at another number of tokens, such as after a convolution."""
        self.by_tokens.setdefault(mask.shape[1], mask)

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
        if found is None:
            own = [self.samples, *self.by_tokens]
            raise DataError(
                f"rows on axes {list(shape)} do not fit the mask of rows to keep, of {own[0]} samples"
                f"{' and ' + ' or '.join(map(str, own[1:])) + ' tokens' if own[1:] else ''}; "
                "run with batch_size=1, which needs no padding, or exclude this layer"
            )
        return found.reshape(found.shape + (1,) * (len(shape) - found.ndim)).expand(shape)

    def _tokens_in(self, shape: torch.Size) -> Tensor | None:
        """Find samples and tokens in the first three axes, in any of the usual orders."""
        candidates = (_flat,) if len(shape) == 1 else (_leading, _with_heads)
        found = (look(shape, mask) for mask in self.by_tokens.values() for look in candidates)
        return next((mask for mask in found if mask is not None), None)

    def _samples_in(self, shape: torch.Size) -> Tensor | None:
        """Find samples alone: pooled rows, one mask per sample, or rows that no sample has a part in."""
        n = self.samples
        pooled = len(shape) == 1 or shape[1:2] == (1,) or not self.by_tokens
        if shape[:1] == (n,) and pooled:
            return self.of_samples
        if n > 1 and shape[:1] == (1,) and len(shape) > 1:
            return self.of_samples.new_ones(shape)
        return None


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
    """Find ``[samples, heads, tokens, …]`` or ``[samples · heads, tokens]``."""
    samples, tokens = mask.shape
    if len(shape) >= 3 and (shape[0], shape[2]) == (samples, tokens) and shape[1] != tokens:
        return mask[:, None].expand(shape[:3])
    if len(shape) == 2 and shape[0] % samples == 0 and shape[1] == tokens:
        return mask.repeat_interleave(shape[0] // samples, dim=0)
    return None


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

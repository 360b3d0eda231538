"""Convolutions and transposed convolutions, in one to three dimensions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from verifix.capture.kinds.base import CHUNK_BYTES, Product, bind
from verifix.capture.kinds.lags import Geometry, Patches, positions_along
from verifix.capture.kinds.masks import REMEDY, RowMask
from verifix.errors import AmbiguousBatchError, DataError


class _Spatial:
    """A function for one number of spatial axes: 1, 2 or 3."""

    stem: str

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.name = f"{self.stem}{dimensions}d"
        self.functions = (getattr(F, self.name),)

    def _batched(self, x: Tensor) -> Tensor:
        """Give a single sample ``[C_in, *space]`` an axis of samples."""
        return x.unsqueeze(0) if x.ndim == self.dimensions + 1 else x


class Convolution(_Spatial):
    """``F.conv{1,2,3}d(x, W)``: one row per output position, the patch the filter sees there, per group.

    A padding mode other than zeros reaches the function as an input that is already padded, so that it needs no
    care here.
    """

    stem = "conv"

    def products(self, args: Sequence[Any], kwargs: Mapping[str, Any], keep: RowMask | None) -> Iterable[Product]:
        """Name the one multiplication of the call; see `LayerKind`."""
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        call = bind(names, args, kwargs)
        x, weight, groups = self._batched(call["input"]), call["weight"], call.get("groups", 1)
        stride = self._per_axis(call.get("stride", 1))
        dilation = self._per_axis(call.get("dilation", 1))
        kernel = weight.shape[2:]
        pads = self._pads(call.get("padding", 0), kernel, dilation)
        geometry = (kernel, stride, pads, dilation)
        if keep is not None:  # later layers need the mask at this layer's output length, selected or not
            learn_length(keep, x, *geometry)

        def rows() -> Iterator[Tensor]:
            wanted = None if keep is None else kept_positions(keep, x, *geometry)
            yield from unfold(x, *geometry, groups, wanted)

        dense = keep is None and set(stride) == {1}
        space = Geometry(tuple(x.shape[2:]), tuple(kernel), tuple(pads), dilation)
        patches = Patches(x, groups, space) if dense else None
        how = (self.name, space, stride, groups, keep)
        yield Product(weight, groups, rows, bias=call.get("bias"), patches=patches, source=(call["input"], how))

    def matrix(self, weight: Tensor, groups: int) -> Tensor:
        """Return ``[groups, C_out / groups, C_in / groups · k₁ · …]``."""
        return weight.reshape(groups, weight.shape[0] // groups, -1)

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """Undo `matrix`."""
        return matrix.reshape(shape)

    def _per_axis(self, value: int | Sequence[int]) -> tuple[int, ...]:
        values = (value,) if isinstance(value, int) else tuple(value)
        return values * self.dimensions if len(values) == 1 else values

    def _pads(
        self, padding: str | int | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]
    ) -> list[tuple[int, int]]:
        if padding == "valid":
            return [(0, 0)] * self.dimensions
        if padding == "same":
            totals = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
            return [(total // 2, total - total // 2) for total in totals]
        assert not isinstance(padding, str)  # noqa: S101 - torch itself has refused any other word
        return [(pad, pad) for pad in self._per_axis(padding)]


def unfold(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
    wanted: Tensor | None = None,
    chunk_bytes: int = CHUNK_BYTES,
) -> Iterator[Tensor]:
    """Yield the patches a convolution multiplies, in any number of dimensions.

    Parameters
    ----------
    x
        ``[samples, C_in, *space]``.
    kernel, stride, dilation
        One number per spatial axis.
    pads
        Zeros before and after, per spatial axis.
    groups
        Convolution groups; ``C_in`` is split into this many.
    wanted
        Which positions count, bool ``[samples, *positions]``; None for all.
    chunk_bytes
        Bytes of float64 patches per chunk; a chunk holds whole samples, one at least.

    Yields
    ------
    Tensor
        ``[groups, samples_i · positions, C_in / groups · k₁ · …]``, patches in the order of the filter's own axes.
    """
    x = F.pad(x, list(itertools.chain.from_iterable(reversed(pads))))
    for axis, (k, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(2 + axis, gap * (k - 1) + 1, step)[..., ::gap]
    # x is now a view [samples, C_in, *positions, *kernel]; only the reshape below copies.
    axes = len(kernel)
    x = x.unflatten(1, (groups, -1))
    samples, channels = 0, 2
    positions, patch = range(3, 3 + axes), range(3 + axes, 3 + 2 * axes)
    x = x.permute(1, samples, *positions, channels, *patch)
    width = x.shape[2 + axes :].numel()
    sample_bytes = 8 * groups * x.shape[2 : 2 + axes].numel() * width
    size = max(1, chunk_bytes // max(sample_bytes, 1))
    for i, piece in enumerate(x.split(size, dim=1)):
        rows = piece.reshape(groups, -1, width)
        yield rows if wanted is None else rows[:, wanted[i * size : (i + 1) * size].reshape(-1)]


def kept_positions(
    keep: RowMask,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Tensor:
    """Return which output positions of a convolution count, bool ``[samples, *positions]``.

    A convolution over tokens that keeps their number counts the positions of tokens that count. One that changes it
    counts the positions whose patch holds no padding, and tells the mask about the new number of tokens.

    Parameters
    ----------
    keep
        Which samples or tokens count.
    x
        ``[samples, C_in, *space]``.
    kernel, stride, pads, dilation
        As in `unfold`.

    Returns
    -------
    Tensor
        The positions.

    Raises
    ------
    DataError
        If the mask does not fit the samples, or the tokens of a one-dimensional convolution.
    """
    sizes = output_sizes(x, kernel, stride, pads, dilation)
    if len(x) != keep.samples:
        raise DataError(f"an input of {len(x)} samples does not fit a mask of {keep.samples}; {REMEDY}")
    axis = _axis_of_tokens(keep, x.shape[2:], sizes)
    if axis is None and keep.by_tokens and len(kernel) == 1:
        known = " or ".join(map(str, keep.by_tokens))
        raise DataError(f"a convolution over {x.shape[2]} positions does not fit a mask of {known} tokens; {REMEDY}")
    mask = keep.of_samples if axis is None else keep.by_tokens[sizes[axis]]
    own = [size if i == axis else 1 for i, size in enumerate(sizes)]
    return mask.to(x.device).reshape(-1, *own).expand(-1, *sizes)


def output_sizes(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> list[int]:
    """Return the number of output positions along each axis; see `unfold`."""
    geometry = zip(x.shape[2:], kernel, pads, dilation, strict=True)
    return [(positions_along(*axis) - 1) // step + 1 for axis, step in zip(geometry, stride, strict=True)]


def _axis_of_tokens(keep: RowMask, before: Sequence[int], after: Sequence[int]) -> int | None:
    """Return the one axis along which the tokens lie, before and after the convolution; None if there is none."""
    found = [i for i, size in enumerate(after) if size in keep.by_tokens and (len(after) == 1 or before[i] == size)]
    if len(found) > 1:
        raise DataError(f"axes {list(before)} could both be the token axis; {REMEDY}")
    return found[0] if found else None


def learn_length(
    keep: RowMask,
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> None:
    """Tell a mask about the number of tokens that a one-dimensional convolution leaves.

    What counts afterwards is what a patch without padding makes. The zeros that the convolution itself puts around its
    input are no padding; behind the end of a shorter sample stand the zeros that were put there to pad it.

    Parameters
    ----------
    keep
        The mask; may learn another number of tokens.
    x
        ``[samples, C_in, tokens]``.
    kernel, stride, pads, dilation
        As in `unfold`.

    Raises
    ------
    AmbiguousBatchError
        If there are then as many tokens as samples.
    """
    size = output_sizes(x, kernel, stride, pads, dilation)[0]
    if len(kernel) > 1 or x.shape[2] not in keep.by_tokens or size in keep.by_tokens or len(x) != keep.samples:
        return
    before, after = pads[0]
    mask = keep.by_tokens[x.shape[2]]
    reached = F.pad(mask, (after + before, before + after)).unfold(1, before + after + 1, 1).any(dim=2)
    patches = reached.unfold(1, dilation[0] * (kernel[0] - 1) + 1, stride[0])[..., :: dilation[0]]
    keep.add(patches.all(dim=2))
    if keep.ambiguous:
        raise AmbiguousBatchError(
            f"a padded batch of {keep.samples} samples has the same number of tokens after a convolution; choose "
            "another batch_size"
        )


class TransposedConvolution(_Spatial):
    """``F.conv_transpose{1,2,3}d(x, W)``: one row per input position, which the weight turns into a patch of outputs.

    The patches are then added up where they overlap, which is linear and holds no weight. Stride, padding and
    dilation only say where.
    """

    stem = "conv_transpose"

    def products(self, args: Sequence[Any], kwargs: Mapping[str, Any], keep: RowMask | None) -> Iterable[Product]:
        """Name the one multiplication of the call; see `LayerKind`."""
        names = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
        call = bind(names, args, kwargs)
        x, weight, groups = self._batched(call["input"]), call["weight"], call.get("groups", 1)

        def rows() -> Iterator[Tensor]:
            ones = (1,) * self.dimensions
            wanted = None if keep is None else kept_positions(keep, x, ones, ones, [(0, 0)] * len(ones), ones)
            yield from unfold(x, ones, ones, [(0, 0)] * len(ones), ones, groups, wanted)

        yield Product(weight, groups, rows)

    def matrix(self, weight: Tensor, groups: int) -> Tensor:
        """Return ``[groups, C_out / groups · k₁ · …, C_in / groups]`` of a weight ``[C_in, C_out / groups, k₁, …]``."""
        return weight.reshape(groups, weight.shape[0] // groups, -1).mT

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """Undo `matrix`."""
        return matrix.mT.reshape(shape)

"""The table of layer kinds: how each function that multiplies a weight is seen as rows times a matrix.

One adapter per kind is the only place that knows what a kind is. It turns the arguments of a function call into
*rows* in the one canonical layout ``[groups, n, d_in]``, and a weight into a *matrix* ``[groups, d_out, d_in]`` and
back, such that the call computes ``rows @ matrix.mT`` plus whatever it adds:

=================  ==============================  ==============================================
kind               weight                          rows, for an input ``x``
=================  ==============================  ==============================================
``linear``         ``[d_out, d_in]``               ``[1, batch·…, d_in]``
``conv1d/2d/3d``   ``[C_out, C_in / g, k₁, …]``    ``[g, batch · positions, C_in / g · k₁ · …]``
=================  ==============================  ==============================================

Users add kinds of their own with :func:`register`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from verifix.errors import DataError, UsageError

CHUNK_BYTES = 64 * 2**20
"""Rows are handed on in pieces of about this many bytes (counted in float64), so memory does not grow with a batch."""


@dataclass(frozen=True)
class Product:
    """One multiplication inside a function call.

    Attributes
    ----------
    weight
        The weight exactly as the function received it: a parameter, or a view of one.
    groups
        Number of independent multiplications (convolution groups; 1 for a linear layer).
    rows
        Called at most once, before the function runs; yields the kept rows in chunks ``[groups, n_i, d_in]``.
    """

    weight: Tensor
    groups: int
    rows: Callable[[], Iterator[Tensor]]


class LayerKind(Protocol):
    """What an entry of the table offers; `matrix` and `weight` must be exact inverses of each other."""

    @property
    def name(self) -> str:
        """The kind's name, usable as an include or exclude pattern."""

    @property
    def functions(self) -> Sequence[Callable[..., Any]]:
        """The functions whose calls this adapter understands."""

    def products(self, args: Sequence[Any], kwargs: Mapping[str, Any], keep: Tensor | None) -> Iterable[Product]:
        """Name the multiplications of one call.

        Parameters
        ----------
        args, kwargs
            The call's own arguments, untouched.
        keep
            Which rows count: bool ``[samples]`` or ``[samples, tokens]``, or None for all of them.
        """

    def matrix(self, weight: Tensor, groups: int) -> Tensor:
        """Return the weight as ``[groups, d_out, d_in]``."""

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """Return ``[groups, d_out, d_in]`` in the weight's own `shape`."""


def bind(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Give the arguments of a builtin, which has no signature to inspect, their names."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def keep_rows(x: Tensor, keep: Tensor | None) -> Tensor:
    """Flatten ``[..., d]`` to ``[n, d]``, leaving out what the mask leaves out.

    Parameters
    ----------
    x
        A layer's input ``[samples, ..., d]`` or ``[samples, tokens, ..., d]``.
    keep
        Bool ``[samples]`` or ``[samples, tokens]``; a token mask on an input without a token axis keeps every
        sample that has a kept token.

    Returns
    -------
    Tensor
        The kept rows ``[n, d]``.

    Raises
    ------
    DataError
        If the mask does not fit the leading axes of `x`.
    """
    if keep is None:
        return x.reshape(-1, x.shape[-1])
    if x.ndim == 2 and keep.ndim == 2:
        keep = keep.any(dim=1)
    if x.shape[: keep.ndim] != keep.shape:
        raise DataError(
            f"an input of shape {list(x.shape)} does not begin with the axes {list(keep.shape)} of the mask of rows "
            "to keep; pass a mask per sample, or exclude this layer"
        )
    return x[keep.to(x.device)].reshape(-1, x.shape[-1])


def chunked(rows: Tensor, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Tensor]:
    """Yield ``[groups, n, d]`` in consecutive pieces along n of about `chunk_bytes` in float64."""
    groups, _, width = rows.shape
    yield from rows.split(max(1, chunk_bytes // (8 * groups * max(width, 1))), dim=1)


class Linear:
    """``F.linear(x, W)``: every leading axis of x counts rows."""

    name = "linear"
    functions = (F.linear,)

    def products(self, args: Sequence[Any], kwargs: Mapping[str, Any], keep: Tensor | None) -> Iterable[Product]:
        """Name the one multiplication of the call; see `LayerKind`."""
        call = bind(("input", "weight", "bias"), args, kwargs)
        x, weight = call["input"], call["weight"]
        yield Product(weight, 1, lambda: chunked(keep_rows(x, keep).unsqueeze(0)))

    def matrix(self, weight: Tensor, groups: int) -> Tensor:
        """Return ``[1, d_out, d_in]``; a vector weight is one output."""
        return weight.reshape(groups, -1, weight.shape[-1])

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """Undo `matrix`."""
        return matrix.reshape(shape)


class Convolution:
    """``F.conv{1,2,3}d(x, W)``: one row per output position, the patch the filter sees there, per group.

    A padding mode other than zeros reaches the function as an input that is already padded, so that it needs no
    care here.

    Parameters
    ----------
    dimensions
        1, 2 or 3 spatial axes.
    """

    def __init__(self, dimensions: int) -> None:
        self.dimensions = dimensions
        self.name = f"conv{dimensions}d"
        self.functions = (getattr(F, self.name),)

    def products(self, args: Sequence[Any], kwargs: Mapping[str, Any], keep: Tensor | None) -> Iterable[Product]:
        """Name the one multiplication of the call; see `LayerKind`."""
        names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
        call = bind(names, args, kwargs)
        weight, groups = call["weight"], call.get("groups", 1)

        def rows() -> Iterator[Tensor]:
            x = call["input"]
            if x.ndim == self.dimensions + 1:
                x = x.unsqueeze(0)
            if keep is not None:
                x = _keep_samples(x, keep)
            stride = self._per_axis(call.get("stride", 1))
            dilation = self._per_axis(call.get("dilation", 1))
            kernel = weight.shape[2:]
            pads = self._pads(call.get("padding", 0), kernel, dilation)
            yield from unfold(x, kernel, stride, pads, dilation, groups)

        yield Product(weight, groups, rows)

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


def _keep_samples(x: Tensor, keep: Tensor) -> Tensor:
    """Select whole samples of ``[samples, ...]``; a patch mixes tokens, so a token mask keeps samples."""
    kept = keep if keep.ndim == 1 else keep.any(dim=1)
    if len(kept) != len(x):
        raise DataError(
            f"an input of {len(x)} samples does not fit a mask of {len(kept)}; "
            "pass one mask entry per sample, or exclude this layer"
        )
    return x[kept.to(x.device)]


def unfold(
    x: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
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
    for piece in x.split(max(1, chunk_bytes // max(sample_bytes, 1)), dim=1):
        yield piece.reshape(groups, -1, width)


KINDS: dict[Callable[..., Any], LayerKind] = {}
"""The one table: function → the adapter that understands its calls."""


def register(kind: LayerKind) -> LayerKind:
    """Add a layer kind to the table.

    Parameters
    ----------
    kind
        The adapter; see `LayerKind` for what it must offer.

    Returns
    -------
    LayerKind
        The same adapter.

    Raises
    ------
    UsageError
        If another kind has the same name or already understands one of the functions.
    """
    for function in kind.functions:
        if function in KINDS:
            raise UsageError(
                f"layer kind {kind.name!r} wants {getattr(function, '__name__', function)!r}, which "
                f"{KINDS[function].name!r} already has; remove that entry of verifix.layers.KINDS first"
            )
    if kind.name in {known.name for known in KINDS.values()}:
        raise UsageError(f"a layer kind named {kind.name!r} exists already; choose another name")
    KINDS.update(dict.fromkeys(kind.functions, kind))
    return kind


register(Linear())
for _dimensions in (1, 2, 3):
    register(Convolution(_dimensions))

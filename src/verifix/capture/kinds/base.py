"""The protocol of a layer kind, and the table of all kinds."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from verifix.capture.kinds.lags import Patches
from verifix.capture.kinds.masks import RowMask
from verifix.errors import UsageError

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
        Number of independent multiplications (convolution groups, experts; 1 for a linear layer).
    rows
        Called at most once, before the function runs; yields the kept rows in chunks ``[groups, n_i, d_in]``.
    partner
        The other operand, if the function does not say which of its operands is the weight. A product of two
        parameters is then not a layer.
    bias
        The tensor that the call adds to every row's outputs, ``[groups · d_out]``; None if it adds nothing, or if it
        changes the outputs in another way.
    patches
        The same rows in a form that is faster to multiply; None if there is none.
    source
        The input as the function received it, and how its rows are read: products in which both are equal have the
        same rows. None if that cannot be told.
    within
        Where the weight meets its input only inside the function: takes that input, the left operand of a matrix
        product, and yields the rows. `rows` is called, after the function has run, only if no such product was seen.
    """

    weight: Tensor
    groups: int
    rows: Callable[[], Iterator[Tensor]]
    partner: Tensor | None = None
    bias: Tensor | None = None
    patches: Patches | None = None
    source: tuple[Tensor, Hashable] | None = None
    within: Callable[[Tensor], Iterator[Tensor]] | None = None


class LayerKind(Protocol):
    """What an entry of the table offers; `matrix` and `weight` must be exact inverses of each other."""

    @property
    def name(self) -> str:
        """The kind's name, usable as an include or exclude pattern."""

    @property
    def functions(self) -> Sequence[Callable[..., Any]]:
        """The functions whose calls this adapter understands."""

    def products(self, args: Sequence[Any], kwargs: Mapping[str, Any], keep: RowMask | None) -> Iterable[Product]:
        """Yield the multiplications of one call.

        Parameters
        ----------
        args, kwargs
            The call's own arguments, untouched.
        keep
            Which rows count, or None for all of them; see `kept_rows`.
        """

    def matrix(self, weight: Tensor, groups: int) -> Tensor:
        """Return the weight as ``[groups, d_out, d_in]``."""

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """Return ``[groups, d_out, d_in]`` in the weight's own `shape`."""


class RowMajor:
    """A weight whose last axis is d_in and whose leading axes are groups and outputs: it is its own matrix."""

    def matrix(self, weight: Tensor, groups: int) -> Tensor:
        """Return ``[groups, d_out, d_in]``; a vector weight is one output."""
        return weight.reshape(groups, -1, weight.shape[-1])

    def weight(self, matrix: Tensor, shape: torch.Size) -> Tensor:
        """Undo `matrix`."""
        return matrix.reshape(shape)


def bind(names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Give the arguments of a builtin, which has no signature to inspect, their names."""
    return {**dict(zip(names, args, strict=False)), **kwargs}


def chunked(rows: Tensor, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Tensor]:
    """Yield ``[groups, n, d]`` in consecutive pieces along n of about `chunk_bytes` in float64."""
    groups, _, width = rows.shape
    yield from rows.split(max(1, chunk_bytes // (8 * groups * max(width, 1))), dim=1)


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
                f"layer kind {kind.name!r} handles {getattr(function, '__name__', function)!r}, which layer kind "
                f"{KINDS[function].name!r} handles already; remove that entry from verifix.capture.kinds.KINDS first"
            )
    if kind.name in {known.name for known in KINDS.values()}:
        raise UsageError(f"a layer kind named {kind.name!r} exists already; choose another name")
    KINDS.update(dict.fromkeys(kind.functions, kind))
    return kind

"""Second moments of a layer's input rows: streaming, mergeable, saveable, and ignorant of models.

While a layer has seen fewer rows than they are wide, its moments hold the rows themselves; from then on their number n
and XᵀX. Both only ever add, so moments of the same rows agree however the rows were split, ordered and merged.

Rows in float32 are multiplied in float32, chunk by chunk, and the products are added in float64. That moves XᵀX by
about 1e-7 of its size, which is what a forward pass in float32 does to the rows themselves, and takes half the time.
Rows in float64 are multiplied in float64.
"""

from __future__ import annotations

import copy
import functools
import math
import operator
from collections.abc import Iterable

import torch
from torch import Tensor

ROWS_PER_PRODUCT = 8192
"""Rows in float32 that are multiplied at once: the rounding of a sum grows with its length."""

SAFE = (1e-12, 1e12)
"""Largest entries between which squares and their sums stay within float32; others are scaled first."""


class Moments:
    """Second moments of rows ``[groups, n, d_in]``; XᵀX is in float64.

    Parameters
    ----------
    rows
        The first rows, ``[groups, n, d_in]`` of any floating dtype; n may be 0.

    Notes
    -----
    ``a + b`` merges without touching either; `add_` takes in further rows in place.
    """

    def __init__(self, rows: Tensor) -> None:
        self.groups, self.n, self.width = rows.shape
        self._rows: list[Tensor] | None = [_kept(rows)]
        self._gram: Tensor | None = None
        self._settle()

    @classmethod
    def from_gram(cls, gram: Tensor, n: int) -> Moments:
        """Build moments of n rows from their XᵀX ``[groups, d_in, d_in]``."""
        moments = cls(gram.new_empty(gram.shape[0], 0, gram.shape[-1]))
        moments._rows, moments._gram, moments.n = None, gram.double(), n
        return moments

    @property
    def rows(self) -> Tensor | None:
        """The rows ``[groups, n, d_in]`` while ``n < d_in``, else None; in float64, or float32 if they came in less."""
        if self._rows is None:
            return None
        if len(self._rows) > 1:
            self._rows = [torch.cat(self._rows, dim=1)]
        return self._rows[0]

    @property
    def gram(self) -> Tensor:
        """``XᵀX`` ``[groups, d_in, d_in]``."""
        if self._gram is not None:
            return self._gram
        return sum_of(_squares(rows) for rows in self._rows or ())

    @property
    def trace(self) -> Tensor:
        """``‖X‖²_F`` per group, ``[groups]``; not finite as soon as one entry of the rows is not."""
        if self._gram is not None:
            return self._gram.diagonal(dim1=1, dim2=2).sum(dim=1)
        return sum_of(rows.double().square().sum(dim=(1, 2)) for rows in self._rows or ())

    @property
    def effective_rank(self) -> Tensor:
        """``1 / ‖C‖²_F`` per group, ``[groups]``: how many directions the rows excite; 0 for a dead group."""
        rows = self.rows
        inner = self.gram if rows is None else _squares(rows.mT)
        squares = inner.square().sum(dim=(1, 2))
        return torch.where(squares > 0, self.trace.square() / squares, torch.zeros_like(squares))

    def add_(self, rows: Tensor) -> Moments:
        """Take in further rows.

        Parameters
        ----------
        rows
            ``[groups, n, d_in]`` of any floating dtype.

        Returns
        -------
        Moments
            This object.
        """
        self.n += rows.shape[1]
        if self._gram is not None:
            self._gram += _squares(rows)
        else:
            assert self._rows is not None  # noqa: S101 - one of the two forms always is there
            self._rows.append(_kept(rows))
            self._settle()
        return self

    def empty(self) -> Moments:
        """Return the moments of no rows, for the same layer."""
        return Moments(self.trace.new_empty(self.groups, 0, self.width))

    def to(self, device: torch.device) -> Moments:
        """Return the same moments on another device."""
        return self.holding([x.to(device) for x in self.tensors])

    @property
    def tensors(self) -> list[Tensor]:
        """What is held: XᵀX alone, or the rows in the pieces that they came in."""
        return [self._gram] if self._gram is not None else list(self._rows or ())

    def holding(self, tensors: list[Tensor]) -> Moments:
        """Return the same moments with other tensors in place of `tensors`, such as copies that lie elsewhere."""
        other = copy.copy(self)
        if self._gram is not None:
            (other._gram,) = tensors
        else:
            other._rows = list(tensors)
        return other

    def condense_(self) -> Moments:
        """Go over to XᵀX now, where merging will need it anyway; returns this object."""
        self._gram, self._rows = self.gram, None
        return self

    def __add__(self, other: Moments) -> Moments:
        """Merge with the moments of other rows of the same layer."""
        if not isinstance(other, Moments):
            return NotImplemented
        if self._rows is not None and other._rows is not None:
            merged = Moments(self._rows[0])
            for rows in (*self._rows[1:], *other._rows):
                merged.add_(rows)
            return merged
        return Moments.from_gram(self.gram + other.gram, self.n + other.n)

    def _settle(self) -> None:
        """Keep the smaller form."""
        if self._rows is not None and self.n >= self.width:
            self.condense_()

    def __repr__(self) -> str:
        """Show the sizes and the form."""
        form = "gram" if self._gram is not None else "rows"
        return f"Moments({form}, groups={self.groups}, n={self.n}, width={self.width})"


def product(rows: Tensor, others: Tensor) -> Tensor:
    """Return the sum of the outer products of rows, multiplied in their own dtype and added in float64.

    Parameters
    ----------
    rows, others
        X ``[groups, n, d]`` and Y ``[groups, n, d']``, both float32 (see `within_float32`) or both float64.

    Returns
    -------
    Tensor
        ``XᵀY`` ``[groups, d, d']``, float64.
    """
    if rows.dtype == torch.float64:
        return rows.mT @ others
    chunks = zip(rows.split(ROWS_PER_PRODUCT, dim=1), others.split(ROWS_PER_PRODUCT, dim=1), strict=True)
    return sum_of((a.mT @ b).double() for a, b in chunks)


def within_float32(x: Tensor) -> tuple[Tensor, Tensor | float]:
    """Scale numbers so that their squares, and sums of these, are within float32.

    Parameters
    ----------
    x
        Of any dtype.

    Returns
    -------
    x : Tensor
        The numbers in float32, divided by the scale, or in float64 if they were: there nothing overflows.
    scale : Tensor or float
        A power of two, so that dividing is exact; 1 for numbers of usual size. On a GPU it stays there, float64, since
        reading it would make the GPU wait.
    """
    if x.dtype == torch.float64 or not x.is_floating_point():
        return x.double(), 1.0
    x = x.float()
    if not x.numel():
        return x, 1.0
    largest = torch.linalg.vector_norm(x, torch.inf)
    if x.is_cpu and (SAFE[0] < float(largest) < SAFE[1] or not 0 < float(largest) < math.inf):
        return x, 1.0
    odd = ((largest <= SAFE[0]) | (largest >= SAFE[1])) & (largest > 0) & torch.isfinite(largest)
    exponent = torch.where(odd, torch.frexp(largest).exponent, 0)
    half = exponent // 2  # in two steps, each within float32
    return torch.ldexp(torch.ldexp(x, -half), half - exponent), torch.ldexp(torch.ones_like(largest).double(), exponent)


def rescaled(product: Tensor, scale: Tensor | float) -> Tensor:
    """Undo the scale of `within_float32` in products of two numbers."""
    return product if isinstance(scale, float) else product * scale**2


def _squares(rows: Tensor) -> Tensor:
    """Return XᵀX ``[groups, d, d]`` of rows ``[groups, n, d]``, in float64."""
    rows, scale = within_float32(rows)
    return rescaled(product(rows, rows), scale)


def _kept(rows: Tensor) -> Tensor:
    """Return a copy of rows to keep: as they are, but at least in float32."""
    narrow = rows.is_floating_point() and rows.dtype != torch.float64
    return rows.to(torch.float32 if narrow else torch.float64, copy=True)


def sum_of(tensors: Iterable[Tensor]) -> Tensor:
    """Add tensors up; one at least."""
    return functools.reduce(operator.add, tensors)


def merge(parts: Iterable[Moments]) -> Moments:
    """Merge moments of disjoint sets of rows of one layer; one at least."""
    return functools.reduce(operator.add, parts)

"""Second moments of a layer's input rows: streaming, mergeable, saveable, and ignorant of models.

While a layer has seen fewer rows than they are wide, its moments hold the rows themselves; from then on XᵀX and the
number of rows. Both are exact, so moments of the same rows agree however the rows were split, ordered and merged.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable

import torch
from torch import Tensor


class Moments:
    """Moments of rows ``[groups, n, d_in]``, in float64.

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
        self._rows: list[Tensor] | None = [rows.to(torch.float64, copy=True)]
        self._gram: Tensor | None = None
        self._settle()

    @classmethod
    def from_gram(cls, gram: Tensor, n: int) -> Moments:
        """Build moments from ``XᵀX`` ``[groups, d_in, d_in]`` of n rows."""
        moments = cls(gram.new_empty(gram.shape[0], 0, gram.shape[-1]))
        moments._rows, moments._gram, moments.n = None, gram.double(), n
        return moments

    @property
    def rows(self) -> Tensor | None:
        """The rows ``[groups, n, d_in]`` while ``n < d_in``, else None."""
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
        return sum_of(rows.mT @ rows for rows in self._rows or ())

    @property
    def trace(self) -> Tensor:
        """``‖X‖²_F`` per group, ``[groups]``; not finite as soon as one entry of the rows is not."""
        if self._gram is not None:
            return self._gram.diagonal(dim1=1, dim2=2).sum(dim=1)
        return sum_of(rows.square().sum(dim=(1, 2)) for rows in self._rows or ())

    @property
    def effective_rank(self) -> Tensor:
        """``1 / ‖C‖²_F`` per group, ``[groups]``: how many directions the rows excite; 0 for a dead group."""
        rows = self.rows
        inner = self.gram if rows is None else rows @ rows.mT
        squares = inner.square().sum(dim=(1, 2))
        return torch.where(squares > 0, self.trace.square() / squares, torch.zeros_like(squares))

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        held = [self._gram] if self._gram is not None else self._rows or []
        return sum(tensor.numel() * tensor.element_size() for tensor in held)

    def add_(self, rows: Tensor) -> Moments:
        """Take in further rows.

        Parameters
        ----------
        rows
            ``[groups, n, d_in]`` of any floating dtype; upcast before anything is multiplied.

        Returns
        -------
        Moments
            This object.
        """
        self.n += rows.shape[1]
        if self._gram is not None:
            rows = rows.double()
            self._gram.baddbmm_(rows.mT, rows)
        else:
            assert self._rows is not None  # noqa: S101 - one of the two forms always is there
            self._rows.append(rows.to(torch.float64, copy=True))
            self._settle()
        return self

    def empty(self) -> Moments:
        """Return the moments of no rows, for the same layer."""
        return Moments(self.trace.new_empty(self.groups, 0, self.width))

    def to(self, device: torch.device) -> Moments:
        """Return the same moments on another device."""
        if self._gram is not None:
            return Moments.from_gram(self._gram.to(device), self.n)
        return Moments(torch.cat(self._rows or [], dim=1).to(device))

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


def sum_of(tensors: Iterable[Tensor]) -> Tensor:
    """Add tensors up; one at least."""
    return functools.reduce(operator.add, tensors)


def merge(parts: Iterable[Moments]) -> Moments:
    """Merge moments of disjoint sets of rows of one layer; one at least."""
    return functools.reduce(operator.add, parts)

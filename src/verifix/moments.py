"""First and second moments of a layer's input rows: streaming, mergeable, saveable, and ignorant of models.

While a layer has seen fewer rows than they are wide, its moments hold the rows themselves; from then on their number
n, their mean μ and their scatter Σ (x − μ)(x − μ)ᵀ. Both are exact, so moments of the same rows agree however the rows
were split, ordered and merged. XᵀX is the scatter plus n μ μᵀ: a sum, whereas the scatter as XᵀX − n μ μᵀ would be a
difference, and lose as many digits as the square of (mean / spread) has. Merging is the parallel formula of Chan, Golub
and LeVeque (1979), which only adds as well.
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
        self._mean = rows.new_empty(0)
        self._scatter: Tensor | None = None
        self._settle()

    @classmethod
    def from_scatter(cls, scatter: Tensor, mean: Tensor, n: int) -> Moments:
        """Build moments of n rows from their scatter ``[groups, d_in, d_in]`` and their mean ``[groups, d_in]``."""
        moments = cls(scatter.new_empty(scatter.shape[0], 0, scatter.shape[-1]))
        moments._rows, moments._scatter, moments._mean, moments.n = None, scatter.double(), mean.double(), n
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
    def mean(self) -> Tensor:
        """μ, the mean row per group, ``[groups, d_in]``; zero if there are no rows."""
        if self._scatter is not None:
            return self._mean
        return sum_of(rows.sum(dim=1) for rows in self._rows or ()) / max(self.n, 1)

    @property
    def scatter(self) -> Tensor:
        """``Σ (x − μ)(x − μ)ᵀ`` ``[groups, d_in, d_in]``: XᵀX of the centred rows."""
        if self._scatter is not None:
            return self._scatter
        mean = self.mean[:, None]
        return sum_of((rows - mean).mT @ (rows - mean) for rows in self._rows or ())

    @property
    def gram(self) -> Tensor:
        """``XᵀX`` ``[groups, d_in, d_in]``."""
        if self._scatter is not None:
            return torch.baddbmm(self._scatter, self.n * self._mean[:, :, None], self._mean[:, None, :])
        return sum_of(rows.mT @ rows for rows in self._rows or ())

    @property
    def trace(self) -> Tensor:
        """``‖X‖²_F`` per group, ``[groups]``; not finite as soon as one entry of the rows is not."""
        if self._scatter is not None:
            return self._scatter.diagonal(dim1=1, dim2=2).sum(dim=1) + self.n * self._mean.square().sum(dim=1)
        return sum_of(rows.square().sum(dim=(1, 2)) for rows in self._rows or ())

    @property
    def effective_rank(self) -> Tensor:
        """``1 / ‖C‖²_F`` per group, ``[groups]``: how many directions the rows excite; 0 for a dead group."""
        rows = self.rows
        inner = self.gram if rows is None else rows @ rows.mT
        squares = inner.square().sum(dim=(1, 2))
        return torch.where(squares > 0, self.trace.square() / squares, torch.zeros_like(squares))

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
        if self._scatter is not None:
            self._absorb_(rows)
        else:
            assert self._rows is not None  # noqa: S101 - one of the two forms always is there
            self.n += rows.shape[1]
            self._rows.append(rows.to(torch.float64, copy=True))
            self._settle()
        return self

    def _absorb_(self, rows: Tensor) -> None:
        """Add a chunk's own scatter, and that between its mean and the mean so far, in one product."""
        assert self._scatter is not None  # noqa: S101 - what calls this has looked
        count = rows.shape[1]
        if count == 0:
            return
        rows = rows.double()
        mean = rows.mean(dim=1, keepdim=True)
        away, total = mean - self._mean[:, None], self.n + count
        between = away * (self.n * count / total) ** 0.5
        stacked = torch.cat([rows - mean, between], dim=1)
        self._scatter.baddbmm_(stacked.mT, stacked)
        self._mean = self._mean + away[:, 0] * (count / total)
        self.n = total

    def empty(self) -> Moments:
        """Return the moments of no rows, for the same layer."""
        return Moments(self.trace.new_empty(self.groups, 0, self.width))

    def to(self, device: torch.device) -> Moments:
        """Return the same moments on another device."""
        if self._scatter is not None:
            return Moments.from_scatter(self._scatter.to(device), self._mean.to(device), self.n)
        return Moments(torch.cat(self._rows or [], dim=1).to(device))

    def condense_(self) -> Moments:
        """Go over to mean and scatter now, where merging will need them anyway; returns this object."""
        self._mean, self._scatter, self._rows = self.mean, self.scatter, None
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
        total, away = self.n + other.n, other.mean - self.mean
        scatter = self.scatter + other.scatter
        scatter.baddbmm_((self.n * other.n / max(total, 1)) * away[:, :, None], away[:, None, :])
        return Moments.from_scatter(scatter, self.mean + away * (other.n / max(total, 1)), total)

    def _settle(self) -> None:
        """Keep the smaller form."""
        if self._rows is not None and self.n >= self.width:
            self.condense_()

    def __repr__(self) -> str:
        """Show the sizes and the form."""
        form = "scatter" if self._scatter is not None else "rows"
        return f"Moments({form}, groups={self.groups}, n={self.n}, width={self.width})"


def sum_of(tensors: Iterable[Tensor]) -> Tensor:
    """Add tensors up; one at least."""
    return functools.reduce(operator.add, tensors)


def merge(parts: Iterable[Moments]) -> Moments:
    """Merge moments of disjoint sets of rows of one layer; one at least."""
    return functools.reduce(operator.add, parts)

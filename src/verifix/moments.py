"""Second moments of a layer's input rows: streaming, mergeable, saveable, and ignorant of models.

While a layer has seen fewer rows than they are wide, its moments hold the rows themselves; from then on their number n
and XᵀX. Both only ever add, so moments of the same rows agree however the rows were split, ordered and merged.

Rows in float32 are multiplied in float32, chunk by chunk, and the products are added in float64. That moves XᵀX by
about 1e-7 of its size, which is what a forward pass in float32 does to the rows themselves, and takes half the time.
Rows in float64 are multiplied in float64. Only blocks from the diagonal on are multiplied, and mirrored when XᵀX is
asked for; batches with few rows wait for others.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import operator
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

ROWS_PER_PRODUCT = 8192
"""Rows in float32 that are multiplied at once: the rounding of a sum grows with its length."""

COLUMNS = 256
"""Width of the blocks in which XᵀX is multiplied: wide enough for fast products, narrow enough to leave half out."""

CONVERTED = 64
"""Lines of a block that are converted to float64 at once."""

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
        self.groups, self.width = rows.shape[0], rows.shape[2]
        self.n = 0
        self._rows: list[Tensor] = []  # not multiplied yet; all of them while they are fewer than they are wide
        self._upper: Tensor | None = None  # XᵀX of the others; what lies below the diagonal may be out of date
        self._even = True  # whether nothing is out of date
        self._shared: tuple[SharedRows, Tensor] | None = None
        self.add_(rows)

    @classmethod
    def from_gram(cls, gram: Tensor, n: int) -> Moments:
        """Build moments of n rows from their XᵀX ``[groups, d_in, d_in]``."""
        moments = cls(gram.new_empty(gram.shape[0], 0, gram.shape[-1]))
        moments._rows, moments._upper, moments.n = [], gram.double(), n
        return moments

    @property
    def rows(self) -> Tensor | None:
        """The rows ``[groups, n, d_in]`` while ``n < d_in``, else None; in float64, or float32 if they came in less."""
        if not self.has_rows:
            return None
        if len(self._rows) > 1:
            self._rows = [torch.cat(self._rows, dim=1)]
        return self._rows[0]

    @property
    def has_rows(self) -> bool:
        """Whether the rows are still there, since nothing has been multiplied yet."""
        return self._upper is None

    @property
    def gram(self) -> Tensor:
        """``XᵀX`` ``[groups, d_in, d_in]``."""
        if self._upper is None:
            return sum_of(map(_squares, self._rows))
        self.condense_()
        if not self._even:
            mirror_(self._upper)
            self._even = True
        return self._upper

    @property
    def trace(self) -> Tensor:
        """``‖X‖²_F`` per group, ``[groups]``; not finite as soon as one entry of the rows is not."""
        of_rows = (rows.double().square().sum(dim=(1, 2)) for rows in self._rows)
        if self._upper is None:
            return sum_of(of_rows)
        return sum_of((self._upper.diagonal(dim1=1, dim2=2).sum(dim=1), *of_rows))

    @property
    def effective_rank(self) -> Tensor:
        """``1 / ‖C‖²_F`` per group, ``[groups]``: how many directions the rows excite; 0 for a dead group."""
        rows = self.rows
        inner = self.gram if rows is None else _squares(rows.mT)
        squares = inner.square().sum(dim=(1, 2))
        return torch.where(squares > 0, self.trace.square() / squares, torch.zeros_like(squares))

    def add_(self, *rows: Tensor) -> Moments:
        """Take in further rows.

        Parameters
        ----------
        *rows
            ``[groups, n, d_in]`` of any floating dtype.

        Returns
        -------
        Moments
            This object.
        """
        self._shared = None
        for some in rows:
            self.n += some.shape[1]
            waiting = some.shape[1] + sum(kept.shape[1] for kept in self._rows)
            if self.n < self.width or (self._upper is not None and waiting < min(self.width // 2, ROWS_PER_PRODUCT)):
                self._rows.append(_kept(some))
            else:
                self._multiply(some)
        return self

    def shared_products(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Return W Xᵀ, X Xᵀ and X, up to one scale of X, if others share them and W is in the dtype of the rows."""
        if self._shared is None or not self.has_rows or self._rows[0].dtype != weight.dtype:
            return None
        shared, among = self._shared
        return shared.products(weight.to(self._rows[0].device), among)

    def empty(self) -> Moments:
        """Return the moments of no rows, for the same layer."""
        return Moments(self.trace.new_empty(self.groups, 0, self.width))

    def to(self, device: torch.device) -> Moments:
        """Return the same moments on another device."""
        return self.holding([x.to(device) for x in self.tensors])

    @property
    def tensors(self) -> list[Tensor]:
        """What is held, XᵀX alone, or the rows in the pieces that they came in."""
        return list(self._rows) if self._upper is None else [self.gram]

    def holding(self, tensors: list[Tensor]) -> Moments:
        """Return the same moments with other tensors in place of `tensors`, such as copies that lie elsewhere."""
        other = copy.copy(self)
        other._shared = None
        if self._upper is None:
            other._rows = list(tensors)
        else:
            (other._upper,), other._rows, other._even = tensors, [], True
        return other

    def condense_(self) -> Moments:
        """Go over to XᵀX now, where merging will need it anyway; returns this object."""
        if self._rows or self._upper is None:
            self._multiply()
        return self

    def __add__(self, other: Moments) -> Moments:
        """Merge with the moments of other rows of the same layer."""
        if not isinstance(other, Moments):
            return NotImplemented
        if self.has_rows and other.has_rows:
            return Moments(self._rows[0]).add_(*self._rows[1:], *other._rows)
        return Moments.from_gram(self.gram + other.gram, self.n + other.n)

    def _multiply(self, *rows: Tensor) -> None:
        """Add the products of these rows, and of those that wait, to XᵀX."""
        if self._upper is None:
            like = rows[0] if rows else self._rows[0]
            self._upper = like.new_zeros(self.groups, self.width, self.width, dtype=torch.float64)
        waiting, self._rows = self._rows, []
        for some in (*((torch.cat(waiting, dim=1),) if waiting else ()), *rows):
            add_squares_(self._upper, some)
        self._even = False

    def __repr__(self) -> str:
        """Show the sizes and the form."""
        form = "gram" if self._upper is not None else "rows"
        return f"Moments({form}, groups={self.groups}, n={self.n}, width={self.width})"


class SharedRows:
    """The rows of several parts, for moments of many sets of these parts: what they share is worked out once.

    Parameters
    ----------
    parts
        Moments of one layer that hold their rows, or None where a part has none. They go on as views of these rows.

    Attributes
    ----------
    rows
        All rows X, ``[groups, n, d]``.
    ranges
        Where those of each part are.
    """

    def __init__(self, parts: Sequence[Moments | None]) -> None:
        self._parts = parts
        self.rows = torch.cat([rows for part in parts if part is not None and (rows := part.rows) is not None], dim=1)
        ends = list(itertools.accumulate(0 if part is None else part.n for part in parts))
        self.ranges = [range(start, end) for start, end in zip([0, *ends], ends, strict=False)]
        for part, own in zip(parts, self.ranges, strict=True):
            if part is not None:
                part._rows = [self.rows[:, own.start : own.stop]]
        self._scaled: Tensor = within_float32(self.rows)[0]  # the rows themselves, if numbers are of usual size
        self._inner: Tensor | None = None
        self._outputs: list[tuple[Tensor, Tensor]] = []  # W and W Xᵀ, for each layer that sees these rows

    def merge(self, numbers: Sequence[int]) -> Moments:
        """Merge some parts; one at least that has rows."""
        some = [(self.ranges[k], part) for k in numbers if (part := self._parts[k]) is not None]
        if sum(part.n for _, part in some) >= self.rows.shape[2]:
            return merge(part for _, part in some)
        merged = copy.copy(some[0][1])
        merged.n, merged._rows = sum(part.n for _, part in some), [rows for _, part in some for rows in part._rows]
        merged._shared = self, torch.tensor([row for own, _ in some for row in own], device=self.rows.device)
        return merged

    def products(self, weight: Tensor, among: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return W Xᵀ ``[groups, d_out, n]``, X Xᵀ ``[groups, n, n]`` and X of some of the rows, up to one scale of X.

        Parameters
        ----------
        weight
            W ``[groups, d_out, d_in]``, in the dtype of the rows.
        among
            Numbers of the rows.

        Returns
        -------
        tuple of Tensor
            In the dtype of the rows; X Xᵀ is multiplied by the first call, W Xᵀ by those with a new weight.
        """
        if self._inner is None:
            self._inner = _inner(self._scaled)
        outputs = next((found for own, found in self._outputs if torch.equal(own, weight)), None)
        if outputs is None:
            outputs = weight @ self._scaled.mT
            self._outputs.append((weight.clone(), outputs))
        return outputs[..., among], self._inner[:, among[:, None], among], self._scaled[:, among]


def _inner(rows: Tensor) -> Tensor:
    """Return XXᵀ of rows ``[groups, n, d]``, in their dtype: half of the multiplications."""
    total = rows.new_empty(rows.shape[0], rows.shape[1], rows.shape[1])
    for start in range(0, rows.shape[1], COLUMNS):
        total[:, start : start + COLUMNS, start:] = rows[:, start : start + COLUMNS] @ rows[:, start:].mT
    mirror_(total)
    return total


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


def add_squares_(total: Tensor, rows: Tensor) -> None:
    """Add XᵀX to a sum of which nothing below the diagonal is wanted: half of the multiplications.

    Parameters
    ----------
    total
        ``[groups, d, d]``, float64; its upper triangle is added to. Blocks of `COLUMNS` on the diagonal are whole.
    rows
        X ``[groups, n, d]``, of any floating dtype.
    """
    rows, scale = within_float32(rows)
    for chunk in rows.split(ROWS_PER_PRODUCT, dim=1):
        for start in range(0, total.shape[1], COLUMNS):
            block = chunk[..., start : start + COLUMNS].mT @ chunk[..., start:]
            # A few at a time are converted to float64 where they are near, not written to memory and read again.
            target = total[:, start : start + COLUMNS, start:]
            for there, here in zip(target.split(CONVERTED, dim=1), block.split(CONVERTED, dim=1), strict=True):
                there.add_(rescaled(here, scale))


def _squares(rows: Tensor) -> Tensor:
    """Return XᵀX ``[groups, d, d]`` of rows ``[groups, n, d]``, in float64."""
    total = rows.new_zeros(rows.shape[0], rows.shape[2], rows.shape[2], dtype=torch.float64)
    add_squares_(total, rows)
    mirror_(total)
    return total


def mirror_(total: Tensor) -> None:
    """Write what is above the diagonal below it, ``[groups, d, d]``; see `add_squares_`."""
    for start in range(COLUMNS, total.shape[1], COLUMNS):
        block = slice(start, start + COLUMNS)
        total[:, block, :start] = total[:, :start, block].mT


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
    largest = torch.stack(torch.aminmax(x)).abs().max()  # several times as fast as a norm, on the CPU
    if x.is_cpu and (SAFE[0] < float(largest) < SAFE[1] or not 0 < float(largest) < math.inf):
        return x, 1.0
    odd = ((largest <= SAFE[0]) | (largest >= SAFE[1])) & (largest > 0) & torch.isfinite(largest)
    exponent = torch.where(odd, torch.frexp(largest).exponent, 0)
    half = exponent // 2  # in two steps, each within float32
    return torch.ldexp(torch.ldexp(x, -half), half - exponent), torch.ldexp(torch.ones_like(largest).double(), exponent)


def rescaled(product: Tensor, scale: Tensor | float) -> Tensor:
    """Undo the scale of `within_float32` in products of two numbers."""
    return product if isinstance(scale, float) else product.double() * scale**2


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

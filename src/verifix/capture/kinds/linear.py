"""Matrix products: ``F.linear``, ``addmm``, ``matmul`` and its relatives, ``einsum``, ``bilinear``."""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from verifix.capture.kinds.base import CHUNK_BYTES, Product, RowMajor, bind, chunked
from verifix.capture.kinds.masks import REMEDY, RowMask, kept_rows
from verifix.errors import DataError


class Linear(RowMajor):
    """``F.linear(x, W)``: every leading axis of x counts rows."""

    name = "linear"
    functions = (F.linear,)

    def products(self, args: Sequence[Any], kwargs: Mapping[str, Any], keep: RowMask | None) -> Iterable[Product]:
        """Name the one multiplication of the call; see `LayerKind`."""
        call = bind(("input", "weight", "bias"), args, kwargs)
        x, weight, bias = call["input"], call["weight"], call.get("bias")
        rows = partial(_rows, x, keep)
        yield Product(weight, 1, rows, bias=bias, source=(x, (self.name, keep)))


def _rows(x: Tensor, keep: RowMask | None) -> Iterator[Tensor]:
    return chunked(kept_rows(x, keep).unsqueeze(0))


class Matmul(RowMajor):
    """``x @ W`` and ``W @ x``, also in batches of matrices: leading axes of W are groups, such as experts."""

    name = "matmul"
    functions = (torch.matmul, Tensor.matmul, torch.mm, Tensor.mm, torch.bmm, Tensor.bmm, torch.mv, Tensor.mv)

    def products(self, args: Sequence[Any], kwargs: Mapping[str, Any], keep: RowMask | None) -> Iterable[Product]:
        """Name what the call may be: the left operand times a weight, or a weight times the right operand."""
        call = bind(("input", "other"), args, {_OTHER.get(k, k): v for k, v in kwargs.items()})
        yield from matrix_products(call["input"], call["other"], keep)


class Addmm(RowMajor):
    """``addmm(b, x, W)`` and ``baddbmm``: a matmul with a bias, such as the Conv1D of GPT-2."""

    name = "addmm"
    functions = (torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm)

    def products(self, args: Sequence[Any], kwargs: Mapping[str, Any], keep: RowMask | None) -> Iterable[Product]:
        """Name what the call may be; see `Matmul`. A weight that is scaled by ``alpha`` still is the weight."""
        call = bind(("bias", "input", "other"), args, {_ADDED.get(k, k): v for k, v in kwargs.items()})
        scaled = call.get("beta", 1) != 1 or call.get("alpha", 1) != 1
        for product in matrix_products(call["input"], call["other"], keep):
            right = product.partner is call["input"]  # a bias of the other reading lies along the rows
            yield replace(product, bias=call["bias"]) if right and not scaled and call["bias"].ndim == 1 else product


_OTHER = {"mat2": "other", "vec": "other"}
_ADDED = {"input": "bias", "mat1": "input", "mat2": "other", "batch1": "input", "batch2": "other"}


def matrix_products(left: Tensor, right: Tensor, keep: RowMask | None) -> Iterator[Product]:
    """Name both readings of ``left @ right``: either operand may be the weight."""
    if right.ndim >= 2:
        yield _grouped(left if left.ndim > 1 else left.unsqueeze(0), right.mT, keep, left)
    if left.ndim >= 2:
        yield _grouped(right.mT if right.ndim > 1 else right.unsqueeze(0), left, keep, right)


def _grouped(x: Tensor, weight: Tensor, keep: RowMask | None, partner: Tensor) -> Product:
    """Multiply rows ``[…, n, d_in]`` with a weight ``[groups…, d_out, d_in]``, broadcast as matmul does."""
    batch = weight.ndim - 2
    grouped = [axis for axis in range(batch) if weight.shape[axis] > 1]
    groups = weight.shape[:batch].numel()
    squeezed = weight[tuple(0 if a < batch and a not in grouped else slice(None) for a in range(weight.ndim))]

    def rows() -> Iterator[Tensor]:
        wide = x.reshape((1,) * max(0, batch + 2 - x.ndim) + x.shape)
        shift = wide.ndim - 2 - batch
        axes = [shift + axis for axis in grouped]
        wide = wide.expand([weight.shape[a - shift] if a in axes else size for a, size in enumerate(wide.shape)])
        rest = [a for a in range(wide.ndim) if a not in axes]
        wide = wide.permute(*axes, *rest)
        yield from chunked(grouped_rows(wide.reshape(groups, *wide.shape[len(axes) :]), keep))

    return Product(squeezed, groups, rows, partner)


def grouped_rows(x: Tensor, keep: RowMask | None) -> Tensor:
    """Flatten ``[groups, …, d]`` to the kept rows ``[groups, n, d]``."""
    if keep is None:
        return x.reshape(len(x), -1, x.shape[-1])
    return x[:, keep.at(x.shape[1:-1]).to(x.device)]


class Einsum(RowMajor):
    """``einsum`` of an input and a weight, as long as it is a matrix product under another name.

    Letters of the weight fall into three classes: summed with the input (d_in), in the result alone (d_out), and in
    both input and result (groups). Outputs that do not lie together in memory become groups that share their rows.
    """

    name = "einsum"
    functions = (torch.functional.einsum,)

    def products(self, args: Sequence[Any], kwargs: Mapping[str, Any], keep: RowMask | None) -> Iterable[Product]:
        """Name both readings of a call with two operands; others are left to be skipped."""
        equation, *operands = args
        if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
            operands = list(operands[0])
        if kwargs or not isinstance(equation, str) or len(operands) != 2:
            return
        (first, second), result = _letters(equation, operands)
        x, y = operands
        for rows, weight, of_rows, of_weight in ((x, y, first, second), (y, x, second, first)):
            product = _contraction(rows, weight, of_rows, of_weight, result, keep)
            if product is not None:
                yield product


def _letters(equation: str, operands: Sequence[Tensor]) -> tuple[list[str], str]:
    """Return the letters of the operands and of the result, with every ellipsis spelled out."""
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    counts = [
        x.ndim - len(term.replace("...", "")) if "..." in term else 0 for term, x in zip(terms, operands, strict=True)
    ]
    spare = [letter for letter in string.ascii_letters if letter not in equation][: max(counts)]
    spelled = [term.replace("...", "".join(spare[len(spare) - n :])) for term, n in zip(terms, counts, strict=True)]
    if not arrow:
        together = left.replace(",", "").replace(".", "")
        result = "..." + "".join(sorted(letter for letter in set(together) if together.count(letter) == 1))
    return spelled, result.replace("...", "".join(spare))


def _contraction(
    x: Tensor, weight: Tensor, of_x: str, of_weight: str, result: str, keep: RowMask | None
) -> Product | None:
    """Read an einsum as rows times a matrix, if it is one."""
    inner = [c for c in of_weight if c in of_x and c not in result]
    shared = [c for c in of_weight if c in of_x and c in result]
    outer = [c for c in of_weight if c not in of_x]
    repeated = len(set(of_x)) < len(of_x) or len(set(of_weight)) < len(of_weight)
    if repeated or not inner or any(c not in result for c in outer):
        return None
    sizes = dict(zip(of_weight, weight.shape, strict=True))
    if any(sizes[c] != size for c, size in zip(of_x, x.shape, strict=True) if c in sizes):
        return None  # an axis of size 1 that is broadcast
    matrix = _merged(weight, of_weight, shared, outer, inner)
    if matrix is None:  # outputs apart in memory: one group for each but the last
        shared, outer = shared + outer[:-1], outer[-1:]
        matrix = _merged(weight, of_weight, shared, outer, inner)
    if matrix is None:
        return None
    groups = matrix.shape[:-2].numel()

    def rows() -> Iterator[Tensor]:
        summed = [axis for axis, c in enumerate(of_x) if c not in of_weight and c not in result]
        left = [c for c in of_x if c in of_weight or c in result]
        lone = [c for c in shared if c not in left]  # groups that share their rows
        plain = (x.sum(dim=summed) if summed else x).reshape(
            (1,) * len(lone) + tuple(size for axis, size in enumerate(x.shape) if axis not in summed)
        )
        letters = lone + left
        free = [c for c in left if c not in sizes]
        wide = plain.permute([letters.index(c) for c in (*shared, *free, *inner)])
        wide = wide.expand(*[sizes[c] for c in shared], *wide.shape[len(shared) :])
        axes = wide.shape[len(shared) : len(shared) + len(free)]
        yield from chunked(grouped_rows(wide.reshape(groups, *(axes or (1,)), matrix.shape[-1]), keep))

    return Product(matrix, groups, rows, x)


def _merged(
    weight: Tensor, letters: str, shared: Sequence[str], outer: Sequence[str], inner: Sequence[str]
) -> Tensor | None:
    """Return a view ``[*shared, d_out, d_in]`` of the weight, or None if its memory does not allow one."""
    view = weight.permute([letters.index(c) for c in (*shared, *outer, *inner)])
    lead, middle = view.shape[: len(shared)], view.shape[len(shared) : len(shared) + len(outer)]
    try:
        return view.view(*lead, middle.numel(), view.shape[len(shared) + len(outer) :].numel())
    except RuntimeError:
        return None


class GroupedMatmul(RowMajor):
    """``grouped_mm(x, W, offs)``: rows sorted by expert, each part times its own matrix of ``[g, d_in, d_out]``."""

    name = "grouped_matmul"
    functions = (torch._grouped_mm,) if hasattr(torch, "_grouped_mm") else ()

    def products(self, args: Sequence[Any], kwargs: Mapping[str, Any], keep: RowMask | None) -> Iterable[Product]:
        """Name one multiplication per expert that has rows; see `LayerKind`."""
        call = bind(("input", "mat2", "offs"), args, kwargs)
        x, weight, ends = call["input"], call["mat2"], call.get("offs")
        if x.ndim != 2 or weight.ndim != 3 or ends is None:
            return
        start = 0
        for matrix, end in zip(weight, ends.tolist(), strict=True):
            if end > start:
                yield Product(matrix.T, 1, _part(x, start, end, keep), x)
            start = end


def _part(x: Tensor, start: int, end: int, keep: RowMask | None) -> Callable[[], Iterator[Tensor]]:
    def rows() -> Iterator[Tensor]:
        if keep is not None:
            raise DataError(f"tokens are sorted by expert, so padding among them cannot be identified; {REMEDY}")
        return chunked(x[start:end].unsqueeze(0))

    return rows


class Bilinear(RowMajor):
    """``F.bilinear(x, y, W)``: linear in the products xᵢ yⱼ, so a row is all of them, d_in = d₁ · d₂.

    That is the one reading in which the call computes ``rows @ matrix.mT``; rows are formed in small pieces.
    """

    name = "bilinear"
    functions = (torch.bilinear, F.bilinear)

    def products(self, args: Sequence[Any], kwargs: Mapping[str, Any], keep: RowMask | None) -> Iterable[Product]:
        """Name the one multiplication of the call; see `LayerKind`."""
        call = bind(("input1", "input2", "weight", "bias"), args, kwargs)
        first, second, weight = call["input1"], call["input2"], call["weight"]

        def rows() -> Iterator[Tensor]:
            left, right = kept_rows(first, keep), kept_rows(second, keep)
            size = max(1, CHUNK_BYTES // (8 * left.shape[-1] * right.shape[-1]))
            for a, b in zip(left.split(size), right.split(size), strict=True):
                yield (a.unsqueeze(2) * b.unsqueeze(1)).flatten(1).unsqueeze(0)

        yield Product(weight.view(len(weight), -1), 1, rows)

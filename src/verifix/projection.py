"""The projection as pure functions on tensors: Verifix (arXiv 2403.08618), without the SVD.

Notation, per group: rows X ``[n, d_in]``, C = XᵀX / ‖X‖²_F with eigenvalues r, weight W ``[d_out, d_in]``. The paper
scales each eigendirection of C by its importance λ = α r / ((α − 1) r + 1) and replaces W by W P, P = U diag(λ) Uᵀ.
That is the solution of one symmetric positive definite system,

    W P = α W C (I + (α − 1) C)⁻¹                      (primal, d_in × d_in)
        = α (W Xᵀ / s) (I + (α − 1) X Xᵀ / s)⁻¹ X      (dual, n × n, s = ‖X‖²_F)

and both forms read α · left · (I + (α − 1) · kernel)⁻¹ · right. A group with X = 0 keeps its weight.

C has eigenvalues from 0 to 1, so the system's lie between 1 and α: it is positive definite for every α > 0. They are
at most α for α ≥ 1, which is what float64 sets a bound to.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from verifix.errors import UsageError
from verifix.moments import Moments, within_float32

ALPHA_RANGE = (1e-9, 1e12)
"""Strengths for which the system stays positive definite in float64, however deficient the rank of C."""


FLOAT32_ALPHA = 1e6
"""Up to this strength moments of products in float32 are accurate enough: their error of 1e-7 is multiplied by α."""


def check_alpha(alpha: float) -> float:
    """Return α as a float.

    Parameters
    ----------
    alpha
        The strength of the projection.

    Returns
    -------
    float
        The same number.

    Raises
    ------
    UsageError
        Unless it is a number within `ALPHA_RANGE`.
    """
    low, high = ALPHA_RANGE
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not low <= alpha <= high:
        raise UsageError(f"alpha is {alpha!r}; it must be a finite number from {low:g} to {high:g}, or 'auto'")
    return float(alpha)


def importance(r: Tensor, alpha: float) -> Tensor:
    """Return λ = α r / ((α − 1) r + 1) = logistic(log α + logit r), in [0, 1] (paper, eq. of the importance matrix).

    Parameters
    ----------
    r
        Eigenvalues of C, any shape; clamped to [0, 1] against rounding.
    alpha
        The strength, above 0.

    Returns
    -------
    Tensor
        λ, of the shape of `r`.
    """
    r = r.clamp(0, 1)
    return alpha * r / ((alpha - 1) * r + 1)


@dataclass(frozen=True)
class Factors:
    """All of a layer's projection that does not depend on α.

    Attributes
    ----------
    weight
        W, ``[groups, d_out, d_in]``; all in one dtype.
    alive
        Bool ``[groups]``: groups with any non-zero row.
    left
        W C ``[groups, d_out, d_in]``, or W Xᵀ / √s or W Xᵀ / s ``[groups, d_out, n]``.
    kernel
        C ``[groups, d_in, d_in]``, or X Xᵀ / s ``[groups, n, n]``.
    right
        None, or what is left of Xᵀ / s, X / √s or X ``[groups, n, d_in]``.
    """

    weight: Tensor
    alive: Tensor
    left: Tensor
    kernel: Tensor
    right: Tensor | None

    def project(self, alpha: float) -> Tensor:
        """Return W P ``[groups, d_out, d_in]`` for a strength α above 0."""
        factor = _factorised(self.kernel, alpha)
        result = alpha * torch.cholesky_solve(self.left.mT.to(factor.dtype), factor).mT
        if self.right is not None:
            result = result @ self.right.to(factor.dtype)
        return torch.where(self.alive[:, None, None], result.to(self.weight.dtype), self.weight)


def _factorised(kernel: Tensor, alpha: float) -> Tensor:
    """Return the Cholesky factor of I + (α − 1) · kernel; in float64 where float32 would not do."""
    factor: Tensor
    if kernel.dtype != torch.float64 and alpha <= FLOAT32_ALPHA:
        factor, failed = torch.linalg.cholesky_ex(_system(kernel, alpha))
        if not failed.any():
            return factor
    factor = torch.linalg.cholesky(_system(kernel.double(), alpha))
    return factor


def _system(kernel: Tensor, alpha: float) -> Tensor:
    """Return I + (α − 1) · kernel."""
    system = (alpha - 1) * kernel
    system.diagonal(dim1=1, dim2=2).add_(1)
    return system


def dual_is_cheaper(n: int, width: int, outputs: int) -> bool:
    """Compare the multiplications of both forms for rows ``[n, width]`` and `outputs` outputs."""

    def solve(size: int) -> float:
        return size**3 / 3 + 2 * outputs * size**2

    primal = n * width**2 + outputs * width**2 + solve(width)
    dual = n**2 * width + 2 * outputs * n * width + solve(n)
    return dual < primal


def prepare(
    weight: Tensor, moments: Moments, *, dual: bool | None = None, dtype: torch.dtype = torch.float64
) -> Factors:
    """Work out what all strengths share, in the cheaper of the two forms.

    Parameters
    ----------
    weight
        W, ``[groups, d_out, d_in]``, of any floating dtype.
    moments
        Moments of the layer's rows.
    dual
        Force a form; by default the dual is taken if the rows are still there and it costs less.
    dtype
        What the system is solved in. float32 takes half the time, and moves W P by about 3e-9 α of its size: enough to
        compare strengths by their losses, not for weights that are kept.

    Returns
    -------
    Factors
        To be applied with `Factors.project`.

    Raises
    ------
    ValueError
        If the dual is forced on moments that no longer hold their rows.
    """
    if dual is None:
        dual = moments.has_rows and dual_is_cheaper(moments.n, moments.width, weight.shape[1])
    if not dual:
        gram = moments.gram
        weight = weight.to(gram.device, dtype)
        scale = gram.diagonal(dim1=1, dim2=2).sum(dim=1)
        kernel = (gram / _divisor(scale)).to(dtype)
        return Factors(weight, scale > 0, weight @ kernel, kernel, None)
    shared = moments.shared_products(weight.to(dtype))
    if shared is not None:
        left, inner, right = shared
        scale = inner.diagonal(dim1=1, dim2=2).sum(dim=1, dtype=torch.float64)
        divisor = _divisor(scale).to(dtype)
        return Factors(weight.to(right), scale > 0, left / divisor, inner / divisor, right)
    rows = moments.rows
    if rows is None:
        raise ValueError("the dual form needs the rows, and these moments hold only their scatter")
    rows = within_float32(rows)[0].to(dtype)  # their scale cancels below
    weight = weight.to(rows)
    size = torch.linalg.vector_norm(rows, dim=(1, 2), dtype=torch.float64)
    rows = rows / _divisor(size).to(dtype)  # of norm 1, so that no product of theirs overflows
    return Factors(weight, size > 0, weight @ rows.mT, rows @ rows.mT, rows)


def _divisor(scale: Tensor) -> Tensor:
    """Return ‖X‖²_F or ‖X‖_F to divide by, ``[groups, 1, 1]``; 1 for a group whose rows are all zero."""
    return torch.where(scale > 0, scale, torch.ones_like(scale))[:, None, None]


def eigenvalues(moments: Moments) -> Tensor:
    """Return the eigenvalues of C.

    Parameters
    ----------
    moments
        Moments of a layer's rows.

    Returns
    -------
    Tensor
        r, ``[groups, k]`` ascending, clamped to [0, 1]; all zero for a dead group. k is ``d_in``, or n while the rows
        are held (the other eigenvalues are zero).
    """
    rows = None if moments.rows is None else moments.rows.double()
    inner = moments.gram if rows is None else rows @ rows.mT
    values: Tensor = torch.linalg.eigvalsh(inner / _divisor(moments.trace))
    return values.clamp(0, 1)

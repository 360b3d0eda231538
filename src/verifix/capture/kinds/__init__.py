"""The table of layer kinds: how each function that multiplies a weight is seen as rows times a matrix.

One adapter per kind is the only place that knows what a kind is. It turns the arguments of a function call into
*rows* in the one canonical layout ``[groups, n, d_in]``, and a weight into a *matrix* ``[groups, d_out, d_in]`` and
back, such that the call computes ``rows @ matrix.mT`` plus whatever it adds:

=======================  ==================================  ==============================================
kind                     weight                              rows, for an input ``x``
=======================  ==================================  ==============================================
``linear``               ``[d_out, d_in]``                   ``[1, batch·…, d_in]``
``matmul``, ``addmm``    ``[g…, d_in, d_out]``               ``[g, batch·…, d_in]``
``einsum``               any order of axes                   ``[g, batch·…, d_in]``
``grouped_matmul``       ``[experts, d_in, d_out]``          ``[1, tokens of the expert, d_in]``
``bilinear``             ``[d_out, d₁, d₂]``                 ``[1, batch·…, d₁ · d₂]``
``conv1d/2d/3d``         ``[C_out, C_in / g, k₁, …]``        ``[g, batch · positions, C_in / g · k₁ · …]``
``conv_transpose…``      ``[C_in, C_out / g, k₁, …]``        ``[g, batch · positions, C_in / g]``
``attention``            ``[3 d, d]`` or three; ``[d, d]``   ``[1, tokens, d]``
``lstm, gru, rnn_…``     ``[gates · H, d_in]``, ``[…, H]``   ``[1, steps, d_in]``, ``[1, steps, H]``
=======================  ==================================  ==============================================

Users add kinds of their own with :func:`register`.
"""

from __future__ import annotations

from verifix.capture.kinds.attention import Attention
from verifix.capture.kinds.base import KINDS, LayerKind, Product, RowMajor, chunked, register
from verifix.capture.kinds.convolution import Convolution, TransposedConvolution, unfold
from verifix.capture.kinds.linear import Addmm, Bilinear, Einsum, GroupedMatmul, Linear, Matmul
from verifix.capture.kinds.masks import RowMask, kept_rows
from verifix.capture.kinds.recurrent import KINDS_OF_RECURRENCE
from verifix.errors import AmbiguousBatchError

__all__ = [
    "KINDS",
    "AmbiguousBatchError",
    "LayerKind",
    "Product",
    "RowMajor",
    "RowMask",
    "chunked",
    "kept_rows",
    "register",
    "unfold",
]

_kinds: tuple[LayerKind, ...] = (
    Linear(),
    Matmul(),
    Addmm(),
    Einsum(),
    GroupedMatmul(),
    Bilinear(),
    *(Convolution(dimensions) for dimensions in (1, 2, 3)),
    *(TransposedConvolution(dimensions) for dimensions in (1, 2, 3)),
    Attention(),
    *KINDS_OF_RECURRENCE,
)
for _kind in _kinds:
    register(_kind)

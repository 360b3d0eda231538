"""Autograd's record of how a model made its outputs."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

NORMALISING = {
    "Sigmoid": "sigmoid",
    "Hardsigmoid": "sigmoid",
    "Softmax": "softmax",
    "LogSoftmax": "log-softmax",
    "LogSigmoid": "log-sigmoid",
}
"""Operations whose results are probabilities or their logarithms, by autograd's name."""

LINEAR = {
    *("Addmm", "Addmv", "Mm", "Bmm", "Baddbmm", "Linear", "MkldnnLinear", "Trilinear", "Convolution"),
    *("CudnnConvolution", "MkldnnConvolution", "NativeBatchNorm", "CudnnBatchNorm", "NativeLayerNorm"),
}
"""Products with weights, and layers that centre; what they return is not normalised to probabilities."""

PASSING = {
    *("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Slice", "Permute", "Transpose", "T"),
    *("Clone", "Alias", "Clamp", "ClampMin", "ClampMax", "Expand", "ToCopy", "Index", "Split", "Unbind", "Narrow"),
}
"""Operations that leave values, or those within bounds, as they are."""

MIXING = {
    *("Add", "Sub", "Mul", "Div", "Neg", "Cat", "Stack", "Mean", "Relu", "AdaptiveAvgPool2D", "AvgPool2D"),
    "AccumulateGrad",
}
"""Operations that keep logits logits, but not probabilities what they are; and where a graph ends, at a weight."""


def operation_of(node: Any) -> str:
    """Return what a node of autograd's record is called, without the library and the version."""
    return re.sub(r"Backward\d*$", "", node.name().rpartition("::")[2])


def last_operation(output: Tensor) -> str | None:
    """Return what a model's output was made by, as autograd has recorded it.

    Parameters
    ----------
    output
        The output, of a run with gradients.

    Returns
    -------
    str or None
        A value of `NORMALISING`; "linear" if nothing normalises after the last product with weights; None if neither is
        sure.
    """
    pending, found, mixed = [output.grad_fn], set(), False
    while pending:
        node = pending.pop()
        if node is None:
            continue
        name = operation_of(node)
        if name in PASSING or name in MIXING:
            mixed = mixed or name in MIXING
            pending += [each for each, _ in node.next_functions]
        else:
            found.add("linear" if name in LINEAR else NORMALISING.get(name))
    kind = found.pop() if len(found) == 1 else None
    return kind if kind == "linear" or not mixed else None

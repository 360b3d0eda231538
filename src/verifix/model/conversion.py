"""Inputs with fractions in another dtype than the model's weights, as NumPy's and pandas' are, brought to that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from verifix.model.run import InputTypeError, run_model, weight_dtype
from verifix.model.samples import Samples
from verifix.model.tensors import tensors_in


def converting(model: nn.Module, samples: Samples, error: InputTypeError) -> tuple[Samples, str]:
    """Return samples that enter a model in the dtype of its weights.

    Parameters
    ----------
    model
        The model.
    samples
        The samples.
    error
        What the model says to them as they are.

    Returns
    -------
    samples : Samples
        The same, with a `forward` that converts them.
    remark : str
        What is converted, for the user.

    Raises
    ------
    InputTypeError
        If none of the inputs has fractions: integers may be bytes of pixels, or ids, and their scale is not known.
    """
    own, dtype = samples.forward, weight_dtype(model)
    given = {x.dtype for x in tensors_in(next(samples.batches([0], 1)).inputs) if x.is_floating_point()} - {dtype}
    if not given:
        raise error

    def convert(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.is_floating_point() else x

    def forward(model: nn.Module, inputs: Any) -> Any:
        return run_model(model, tree_map(convert, inputs), own)

    found = " and ".join(sorted(map(str, given)))
    return replace(samples, forward=forward), f"Inputs are {found} and are converted to {dtype}, as the weights are."

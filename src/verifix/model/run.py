"""Run a model on a batch, however the batch enters it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from verifix.errors import DataError, VerifixError, one_line

Forward = Callable[[nn.Module, Any], Any]
"""``(model, inputs) → output``: how a batch enters a model, where calling it with the batch is not all."""


OTHER_DTYPE = re.compile(
    r"same dtype|expected scalar type|expected m1 and m2|Input type \(.*\) and \w+ type", re.IGNORECASE
)
"""What torch says when inputs and weights have different dtypes."""


CHANNELS = re.compile(r"to have (\d+) channels, but got (\d+) channels")
"""What torch says when images have other channels than a convolution's weights."""


class InputTypeError(DataError):
    """The inputs have another dtype than the model's weights, and the model does not convert them."""


def run_model(model: nn.Module, inputs: Any, forward: Forward | None = None) -> Any:
    """Run a model, and turn what its own code raises into one line about the inputs.

    Parameters
    ----------
    model
        The model.
    inputs
        A batch, on its device. A dictionary gives keyword arguments, as far as the model names them; a tuple gives
        positional ones.
    forward
        How the batch enters the model, if that is not it.

    Returns
    -------
    object
        The output.

    Raises
    ------
    DataError
        If the model cannot run on these inputs. Lack of memory and errors of this package pass as they are.
    """
    try:
        return (forward or _call)(model, inputs)
    except Exception as error:
        if isinstance(error, (VerifixError, MemoryError)) or out_of_memory(error):
            raise
        told = f"the model cannot run on inputs of {_form(inputs)}: {type(error).__name__}: {one_line(error)}"
        own = weight_dtype(model)
        if own is not None and OTHER_DTYPE.search(str(error)):
            raise InputTypeError(f"{told}; convert the inputs to {own}, the dtype of the weights") from error
        raise DataError(f"{told}{_remedy(str(error), inputs, forward)}") from error


def _remedy(error: str, inputs: Any, forward: Forward | None) -> str:
    """Return what to do about inputs that a model cannot run on, after a semicolon; empty if that is not known."""
    channels = CHANNELS.search(error)
    if channels is not None and isinstance(inputs, Tensor):
        wanted, got = map(int, channels.groups())
        if inputs.ndim == 4 and inputs.shape[3] == wanted:
            return "; the channels are last: give inputs.permute(0, 3, 1, 2)"
        return "; for grey images, give one number for --mean and --std" if (wanted, got) == (1, 3) else ""
    return "" if forward or isinstance(inputs, Tensor) else "; forward= says how a batch enters the model"


def weight_dtype(model: nn.Module) -> torch.dtype | None:
    """Return the dtype of a model's weights with fractions; None if there are none, or several."""
    found = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return found.pop() if len(found) == 1 else None


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        named = named_arguments(model, inputs)
        return model(inputs) if named is None else model(**named)
    return model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)


def named_arguments(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a model's signature names, or all tensors if it takes any name; None if it names nothing."""
    kinds = inspect.signature(model.forward).parameters
    named = {name: value for name, value in inputs.items() if name in kinds}
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in kinds.values())
    if takes_all and not hasattr(model, "main_input_name"):  # models of transformers pass on what they do not know
        return {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    return named or None


def _form(inputs: Any) -> str:
    """Describe a batch in a few words."""
    if isinstance(inputs, Tensor):
        shape = f"[{inputs.size(0)}, nested]" if inputs.is_nested else str(list(inputs.shape))
        return f"shape {shape} and {inputs.dtype}"
    parts = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    return "; ".join(f"{name}: {_form(x) if isinstance(x, Tensor) else type(x).__name__}" for name, x in parts)


def to_device(inputs: Any, device: torch.device) -> Any:
    """Copy every tensor of a batch to a device; a model may write into what it is given."""
    return tree_map(lambda x: x.to(device, copy=True) if isinstance(x, Tensor) else x, inputs)


def out_of_memory(error: BaseException) -> bool:
    """Tell whether torch ran out of memory, on any device."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)

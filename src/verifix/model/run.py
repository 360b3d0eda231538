"""Run a model on a batch, however the batch enters it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from verifix.errors import DataError, VerifixError, one_line

Forward = Callable[[nn.Module, Any], Any]
"""``(model, inputs) → output``: how a batch enters a model, where calling it with the batch is not all."""


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
        raise DataError(
            f"the model cannot run on inputs of {_form(inputs)}: {type(error).__name__}: {one_line(error)}"
            + ("" if forward or isinstance(inputs, Tensor) else "; forward= says how a batch enters the model")
        ) from error


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

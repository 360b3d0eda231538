"""Forms in which a module comes: wrapped, compiled, scripted, quantised, sharded. Unwrap it, or say why not."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from verifix.errors import UsageError

QUANTISED = (torch.int8, torch.uint8, torch.qint8, torch.quint8)
"""Dtypes of quantised matrices. Counters, tables of indices and masks come in others, or have one dimension."""


GATHER = "gather a full state dict in every process, and load it into the plain module (docs/many-machines.md)"
"""The remedy for models of which no process has a whole layer."""


def unwrapped(model: Any) -> Any:
    """Return the module inside of compilation, data parallelism and weight averaging; anything else as it is.

    Parameters
    ----------
    model
        What the user gave.

    Returns
    -------
    object
        The module inside; its parameters are those of the wrapper, under shorter names.
    """
    while True:
        if isinstance(model, nn.Module) and isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod
        elif isinstance(model, _parallel()):
            model = model.module
        else:
            return model


def _parallel() -> tuple[type[nn.Module], ...]:
    distributed = nn.parallel.DistributedDataParallel
    averaged = sys.modules.get("torch.optim.swa_utils")
    return (nn.DataParallel, distributed, *([averaged.AveragedModel] if averaged else []))


def run_eagerly(model: nn.Module) -> None:
    """Undo ``module.compile()`` in place, on a copy: calls run the module as it was written."""
    for module in model.modules():
        module._compiled_call_impl = None


def refuse_form(model: nn.Module) -> None:
    """Refuse modules whose weights cannot be seen or written.

    Parameters
    ----------
    model
        The module, unwrapped.

    Raises
    ------
    UsageError
        Naming the form and the remedy.
    """
    for what, remedy in _obstacles(model):
        raise UsageError(f"the model {what}; {remedy}")


def _obstacles(model: nn.Module) -> Iterator[tuple[str, str]]:
    if isinstance(model, torch.jit.ScriptModule):
        yield "is a TorchScript module, whose layers are not visible", "give the Python module that it was made from"
    if isinstance(model, torch.fx.GraphModule) and _is_exported(model):
        yield "is an exported program", "give the module that it was exported from"
    for name, module in model.named_modules():
        home, kind = type(module).__module__, type(module).__name__
        if home.startswith(("torch.ao.nn.", "torch.nn.quantized", "torch.nn.intrinsic.quantized")) and _packed(module):
            yield f"has the quantised module {kind} at {name!r}", "correct it in floating point, then quantise it again"
        if home.startswith("torch.distributed.fsdp") or kind == "FullyShardedDataParallel":
            yield f"is sharded (FSDP at {name!r})", GATHER
    for name, parameter in model.named_parameters():
        yield from _obstacles_of(name, parameter)


def _is_exported(model: torch.fx.GraphModule) -> bool:
    """Tell the module of a torch.export program, made of operators, from a graph that was traced from Python."""
    return any(isinstance(node.target, torch._ops.OpOverload) for node in model.graph.nodes)


def _packed(module: nn.Module) -> bool:
    """Tell modules that hold their weight in integers from those that only prepare for it."""
    return not any(True for _ in module.parameters()) or hasattr(module, "_packed_params")


def _obstacles_of(name: str, parameter: Tensor) -> Iterator[tuple[str, str]]:
    kind = type(parameter.data)
    home = f"{kind.__module__}.{kind.__name__}"
    if kind.__name__ == "DTensor" or hasattr(parameter, "ds_id"):
        yield f"is sharded ({name!r} is {'a DTensor' if kind.__name__ == 'DTensor' else 'of DeepSpeed'})", GATHER
    elif home.startswith(("torchao.", "bitsandbytes.")) or hasattr(parameter, "quant_state"):
        yield f"has the quantised weight {name!r} ({home})", "correct it in floating point, then quantise it again"
    elif parameter.ndim >= 2 and parameter.dtype in QUANTISED:
        remedy = "correct it in floating point, then quantise it; if it is not a weight, register it as a buffer"
        yield f"has the quantised weight {name!r} ({parameter.dtype})", remedy

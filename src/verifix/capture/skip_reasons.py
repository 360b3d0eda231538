"""Why a parameter is not corrected, in words, where the name of a function alone would not say it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm

from verifix.errors import UsageError

MULTIPLY_NOT = frozenset(
    {
        *("embedding", "embedding_bag", "add", "sub", "cat", "concat", "concatenate", "stack", "hstack", "vstack"),
        *("repeat", "tile", "repeat_interleave", "broadcast_to", "roll", "flip", "pad", "where", "index_add"),
        *("interpolate", "upsample_bicubic2d", "grid_sample"),
        *("Tensor.add", "Tensor.__add__", "Tensor.__radd__", "Tensor.__iadd__", "Tensor.add_"),
        *("Tensor.sub", "Tensor.__sub__", "Tensor.__rsub__", "Tensor.__isub__", "Tensor.sub_"),
        *("Tensor.repeat", "Tensor.tile", "Tensor.repeat_interleave", "Tensor.roll", "Tensor.flip"),
        *("Tensor.index_add_", "Tensor.where"),
    }
)
"""Functions that look a parameter up, move it about, put it beside activations or add it, and do not multiply with it.

Copies, casts and indexing are not among them: what they return may be multiplied, and cannot be followed.
"""

_STANDARDISED = "weight standardisation: a normalised form of it multiplies, so that a write has another effect"
_LOOKED_UP = "looked up, row by row"
_SCALE = "an elementwise scale, which is no matrix product"
_TAKEN = "a copy of it or of a part, whose further use cannot be followed"
_TRANSFORMED = "a function of it is what is used, so that a write has another effect"

_WORDS = {
    **dict.fromkeys(("batch_norm", "var_mean", "std_mean"), _STANDARDISED),
    **dict.fromkeys(("embedding", "embedding_bag"), _LOOKED_UP),
    **dict.fromkeys(("mul", "Tensor.mul", "Tensor.mul_", "Tensor.__mul__", "Tensor.__rmul__", "addcmul"), _SCALE),
    **dict.fromkeys(("Tensor.__imul__", "Tensor.addcmul", "Tensor.addcmul_", "Tensor.div", "div"), _SCALE),
    **dict.fromkeys(("Tensor.to", "Tensor.float", "Tensor.half", "Tensor.bfloat16", "Tensor.double"), _TAKEN),
    **dict.fromkeys(("Tensor.type", "Tensor.type_as", "Tensor.clone", "clone", "Tensor.contiguous"), _TAKEN),
    **dict.fromkeys(("Tensor.reshape", "reshape", "Tensor.flatten", "flatten", "Tensor.unfold"), _TAKEN),
    **dict.fromkeys(("Tensor.__getitem__", "Tensor.index_select", "index_select", "gather", "Tensor.gather"), _TAKEN),
    **dict.fromkeys(("clamp", "Tensor.clamp", "sigmoid", "Tensor.sigmoid", "exp", "Tensor.exp"), _TRANSFORMED),
    **dict.fromkeys(("softmax", "Tensor.softmax", "tanh", "Tensor.tanh", "softplus"), _TRANSFORMED),
    **dict.fromkeys(("layer_norm", "rms_norm", "normalize", "Tensor.abs", "abs"), _TRANSFORMED),
    "linear": "as its input, not as its weight",
}


def explained(functions: Iterable[str]) -> str:
    """Return ``used by NAME, …`` with the reason where the name does not tell it.

    Parameters
    ----------
    functions
        Names of functions without an adapter.

    Returns
    -------
    str
        The reason, in one line.
    """
    names = sorted(set(functions))
    words = "; ".join(dict.fromkeys(_WORDS[name] for name in names if name in _WORDS))
    return f"used by {', '.join(names)}" + (f" ({words})" if words else "")


def fixed_reasons(model: nn.Module) -> dict[str, str]:
    """Return the parameters that the structure of a model forbids to correct.

    Parameters
    ----------
    model
        The model.

    Returns
    -------
    dict
        Reason by parameter name.

    Raises
    ------
    UsageError
        If the model has adapters whose effect cannot be kept apart from the weights they adapt.
    """
    found = (_parametrised(model), _spectral(model), _pruned(model), _second_factors(model))
    return {name: reason for each in found for name, reason in each}


def _parametrised(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Name what a parametrization computes a weight from, unless it is weight norm, which can be written through."""
    for name, module in model.named_modules():
        if not parametrize.is_parametrized(module):
            continue
        for tensor, steps in module.parametrizations.items():
            kinds = [type(step).__name__.strip("_") for step in steps if not isinstance(step, _WeightNorm)]
            for inner, _ in steps.named_parameters(recurse=False) if kinds else ():
                path = ".".join(filter(None, (name, "parametrizations", tensor, inner)))
                yield path, f"the parametrization {' and '.join(kinds)} computes the weight from it"


def _spectral(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Name what the older form of spectral norm, a hook, divides by its largest singular value."""
    for name, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, SpectralNorm):
                path = ".".join(filter(None, (name, f"{hook.name}_orig")))
                yield path, "spectral norm divides it by its largest singular value, so that a write has another effect"


def _pruned(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Name what torch's pruning, a hook, multiplies by a mask."""
    for name, module in model.named_modules():
        for hook in module._forward_pre_hooks.values():
            if isinstance(hook, BasePruningMethod):
                tensor = hook._tensor_name
                path = ".".join(filter(None, (name, f"{tensor}_orig")))
                remedy = f"torch.nn.utils.prune.remove(module, {tensor!r}) makes the pruning permanent"
                yield path, f"a mask of torch.nn.utils.prune multiplies it; {remedy}"


def _second_factors(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Name the second factor B of every low-rank adapter: (W + B A) P = W P + B (A P) leaves it as it is."""
    if "peft" not in sys.modules:
        return
    from peft.tuners.lora import LoraLayer
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in model.named_modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        plain = isinstance(module, LoraLayer) and type(module).__name__ in ("Linear", "Conv1d", "Conv2d", "Embedding")
        if not plain or module.merged or any(getattr(module, "use_dora", {}).values()):
            raise UsageError(
                f"the adapter {type(module).__module__}.{type(module).__name__} at {name!r} changes its layer in a way "
                "that cannot be corrected apart from it; merge the adapters first (model.merge_and_unload())"
            )
        for factor in ("lora_B", "lora_embedding_B"):
            for inner, _ in getattr(module, factor).named_parameters():
                reason = "second factor of a low-rank adapter, whose first factor carries the projection"
                yield f"{name}.{factor}.{inner}", reason

"""What becomes of each parameter while a model runs, told apart from how verifix tells it.

Every operator that runs is watched below the functions that verifix intercepts. A tensor that was made of parameters
alone carries their names, through copies, views and arithmetic, until an operator brings it together with something
else: activations, or the floating-point constants of the model. What that operator is decides what the parameter does.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

ADDS = frozenset(
    {
        *("add", "add_", "sub", "sub_", "rsub", "cat", "stack", "copy_", "copy", "where", "index_put", "index_put_"),
        *("embedding", "_embedding_bag", "index", "index_select", "gather", "slice_scatter", "select_scatter"),
        *("masked_scatter", "masked_scatter_", "lift_fresh"),
    }
)
"""Operators that put a parameter beside other values, add it, or look it up."""

PRODUCTS = frozenset(
    {
        *("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "convolution", "mkldnn_rnn_layer"),
        *(
            "lstm",
            "gru",
            "_trilinear",
            "addbmm",
            "_grouped_mm",
            "linear",
            "_thnn_fused_lstm_cell",
            "matmul",
            "mkldnn_convolution",
        ),
    }
)
"""Operators that a matrix product becomes."""

ROWS = PRODUCTS | {"embedding"}
"""Operators that make activations of parameters alone: rows of a table, or those times a weight."""

OF_SUMMANDS = {
    **dict.fromkeys(("addmm", "baddbmm", "addmv", "addbmm"), ("self",)),
    **dict.fromkeys(("_scaled_dot_product_flash_attention_for_cpu",), ("attn_mask",)),
    **dict.fromkeys(("convolution", "native_layer_norm", "native_batch_norm", "native_group_norm"), ("bias",)),
}
"""Arguments of other operators that are only added."""


@dataclass
class Uses:
    """What was seen.

    Attributes
    ----------
    met
        Per parameter, the operators that brought it together with activations.
    constant
        Per parameter, the operators that brought it together with constants.
    """

    met: dict[str, set[str]] = field(default_factory=dict)
    constant: dict[str, set[str]] = field(default_factory=dict)

    def verdict(self, name: str) -> str:
        """Return "multiplied", "added" or "unused"."""
        met = self.met.get(name, set())
        if not met:
            return "unused"
        return "added" if met <= ADDS else "multiplied"

    def contradiction(self, name: str, status: str, *, multiplies: bool) -> str:
        """Say what contradicts verifix's account of a parameter.

        Parameters
        ----------
        name, status, multiplies
            The account.

        Returns
        -------
        str
            One line; empty if nothing does.
        """
        seen = sorted(self.met.get(name, set()) | self.constant.get(name, set()))
        wrong = {
            "corrected": not PRODUCTS & set(seen),
            "unused": self.verdict(name) != "unused",
            "skipped": not multiplies and self.verdict(name) == "multiplied",
        }[status]
        return f"{name}: {status}{'' if multiplies else ' (added)'}, but it meets {', '.join(seen)}" if wrong else ""


class _Watch(TorchDispatchMode):
    """Follows what is made of parameters alone, and what of the input."""

    def __init__(self, model: nn.Module, inputs: Any) -> None:
        super().__init__()
        self.uses = Uses()
        self.names: dict[int, frozenset[str]] = {}
        for name, parameter in model.named_parameters():
            place = _place(parameter)
            self.names[place] = self.names.get(place, frozenset()) | {name}
        self.own = set(self.names)
        self.activations = {_place(x) for x in tree_leaves(inputs) if isinstance(x, Tensor)}
        self._kept: list[Tensor] = []  # so that no memory is given to another tensor

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = dict(_named_tensors(func, args, kwargs))
        result = func(*args, **kwargs)
        names = frozenset[str]().union(*(self.names.get(_place(x), frozenset()) for x in _flat(given.values())))
        live = any(_place(x) in self.activations for x in _flat(given.values()))
        name = str(func.overloadpacket.__name__)
        live = live or (name in ROWS and bool(names))
        if names:
            self._note(name, given, live=live)
        self._pass_on(func, given, result, names, live=live)
        return result

    def _note(self, name: str, given: dict[str, Any], *, live: bool) -> None:
        """Remember an operator under the parameters that it brings together with something else."""
        beside = OF_SUMMANDS.get(name, ())
        everything = list(_flat(given.values()))
        weights = sum(_place(x) in self.own for x in everything if x.ndim >= 2)
        for argument, value in given.items():
            for x in _flat([value]):
                # A learned query, copied for every sample, is a row of the layer that a parameter is the weight of.
                row = name in PRODUCTS and weights > 0 and _place(x) not in self.own
                meant = "add" if argument in beside or row else name
                for parameter in self.names.get(_place(x), ()):
                    if live:
                        self.uses.met.setdefault(parameter, set()).add(meant)
                    elif any(parameter not in self.names.get(_place(y), ()) for y in everything if y.ndim):
                        self.uses.constant.setdefault(parameter, set()).add(meant)

    def _pass_on(self, func: Any, given: dict[str, Any], result: Any, names: frozenset[str], *, live: bool) -> None:
        """Mark what an operator returned or wrote to."""
        written = [
            x
            for argument in func._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
            for x in _flat([given.get(argument.name)])
        ]
        for x in (*_flat(tree_leaves(result)), *written):
            place = _place(x)
            self._kept.append(x)
            if not place:
                continue
            if live:
                self.activations.add(place)
                self.names.pop(place, None)
            elif names and place not in self.activations:
                self.names[place] = self.names.get(place, frozenset()) | names


def _flat(values: Any) -> Iterator[Tensor]:
    return (x for x in tree_leaves(list(values)) if isinstance(x, Tensor))


def _named_tensors(func: Any, args: Any, kwargs: Any) -> Iterator[tuple[str, Any]]:
    """Give an operator's arguments the names of its schema."""
    for argument, value in zip(func._schema.arguments, args, strict=False):
        yield argument.name, value
    yield from kwargs.items()


def _place(tensor: Tensor) -> int:
    """Return the address of a tensor's memory; 0 for none."""
    return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided and tensor.numel() else 0


def watch(model: nn.Module, inputs: Any, run: Callable[[nn.Module, Any], Any]) -> Uses:
    """Run a model in eval mode and see what becomes of its parameters.

    Parameters
    ----------
    model
        The model.
    inputs
        A batch.
    run
        How it enters the model.

    Returns
    -------
    Uses
        What was seen.
    """
    watcher = _Watch(model, inputs)
    with torch.no_grad(), _attention_written_out(), watcher:
        run(model, inputs)
    return watcher.uses


def unchanged_without(model: nn.Module, names: list[str], run: Callable[[], Any]) -> bool:
    """Tell whether the output stays, bit for bit, when parameters are replaced by NaN; they are put back.

    Parameters
    ----------
    model
        The model, in eval mode.
    names
        The parameters.
    run
        Runs the model.

    Returns
    -------
    bool
        Whether nothing of them reaches the output.
    """
    get = operator.attrgetter
    parameters = [get(name)(model) for name in names]
    with torch.no_grad(), _attention_written_out():
        before = tree_map(_clone, run())
        kept = [parameter.detach().clone() for parameter in parameters]
        for parameter in parameters:
            parameter.fill_(torch.nan)
        after = run()
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
    return all(torch.equal(a, b) for a, b in zip(_flat(tree_leaves(before)), _flat(tree_leaves(after)), strict=True))


def _clone(x: Any) -> Any:
    return x.clone() if isinstance(x, Tensor) else x


class _attention_written_out:  # noqa: N801 - used as a function
    """Turn the fused path of attention off, one operator in which nothing can be told apart."""

    def __enter__(self) -> None:
        self._before = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch.backends.mha.set_fastpath_enabled(self._before)

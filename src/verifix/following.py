"""What becomes of a layer's result: whether a batch normalisation takes it, and nothing else.

A layer without a bias of its own can still have its outputs shifted by constants, if all that reads them is one batch
normalisation in eval mode: its β takes the shift up. Results are followed by identity, call by call, at the level of
functions, and below it where a scripted function reads them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from verifix.borrow import tensors_in

L = TypeVar("L")

NameOf = Callable[[Tensor], str | None]
"""Returns the name of the parameter or buffer that a tensor is, or None."""

_QUESTIONS = frozenset(
    {"dim", "ndimension", "size", "numel", "nelement", "stride", "element_size", "storage_offset", "__len__"}
    | {"is_contiguous", "is_floating_point", "is_complex", "get_device"}
)
"""Methods that tell what a tensor is like, and nothing of its values."""

_NORM = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_NORM_BELOW = ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps")


@dataclass(frozen=True)
class BatchNorm:
    """A batch normalisation in eval mode, γ (x − m) / √(v + ε) + β, by the names of its tensors.

    Attributes
    ----------
    weight, bias
        The parameters γ and β.
    variance
        The buffer v.
    eps
        ε.
    """

    weight: str
    bias: str
    variance: str
    eps: float

    def taken_up(self, shift: Tensor, value: Callable[[str], Tensor]) -> Tensor:
        """Return what β grows by so that the result is that of inputs shifted by so much.

        Parameters
        ----------
        shift
            Per channel, ``[channels]``.
        value
            Returns a parameter or buffer by name.

        Returns
        -------
        Tensor
            γ · shift / √(v + ε), float64 ``[channels]``.
        """
        gain = value(self.weight).double() / (value(self.variance).double() + self.eps).sqrt()
        return gain.to(shift.device) * shift


@dataclass
class Followed(Generic[L]):
    """The results of layers, for as long as they live, and what has read them.

    Attributes
    ----------
    readers
        For each layer, the batch normalisations that took its results; None stands for anything else.
    """

    readers: dict[L, set[BatchNorm | None]] = field(default_factory=dict)
    _alive: dict[int, tuple[weakref.ref[Tensor], L, int]] = field(default_factory=dict)

    def note_result(self, layer: L, result: object, axis: int | None) -> None:
        """Follow what a layer returned, whose outputs lie along an axis; None if along none."""
        if axis is None or not isinstance(result, Tensor) or result.ndim < 2:
            self.readers.setdefault(layer, set()).add(None)
            return
        self.readers.setdefault(layer, set())
        self._alive[id(result)] = (weakref.ref(result), layer, axis % result.ndim)

    def note_call(
        self,
        function: Callable[..., Any],
        args: Any,
        kwargs: Mapping[str, Any],
        tensors: Iterable[Tensor],
        name_of: NameOf,
    ) -> str | None:
        """Note what a call reads.

        Parameters
        ----------
        function, args, kwargs
            The call.
        tensors
            All tensors among its arguments.
        name_of
            Names tensors.

        Returns
        -------
        str or None
            The β that the call adds to a followed result alone, so that its use is explained; None otherwise.
        """
        if not self._alive or _only_asks(function):
            return None
        norm = batch_norm_of(function, args, kwargs, name_of)
        for tensor in tensors:
            found = self._found(tensor)
            if found is not None:
                layer, axis = found
                taken = norm is not None and axis == 1
                self.readers[layer].add(norm if taken else None)
                if norm is not None and taken:
                    return norm.bias
        return None

    def note_other(self, values: object) -> None:
        """Note tensors that something else reads: an operator below all functions, or whoever called the model."""
        if self._alive:
            for tensor in tensors_in(values):
                found = self._found(tensor)
                if found is not None:
                    self.readers[found[0]].add(None)

    def norms(self) -> dict[L, BatchNorm]:
        """Return the one reader of each layer's results, where there is one and it is a batch normalisation."""
        read = {layer: readers for layer, readers in self.readers.items() if readers}
        return {layer: norm for layer, (norm, *others) in read.items() if norm is not None and not others}

    def forget(self) -> None:
        """Let go of what was known of results that are gone; what has read them stays known."""
        self._alive = {key: entry for key, entry in self._alive.items() if entry[0]() is not None}

    def _found(self, tensor: Tensor) -> tuple[L, int] | None:
        reference, layer, axis = self._alive.get(id(tensor), (None, None, 0))
        if reference is None or layer is None or reference() is not tensor:
            return None  # or another tensor at the address of one that is gone
        return layer, axis


def _only_asks(function: Callable[..., Any]) -> bool:
    """Tell a question about shape, dtype or place from a use."""
    name = str(getattr(function, "__name__", ""))
    if name == "__get__":
        owner = str(getattr(getattr(function, "__self__", None), "__name__", ""))
        return owner not in {"data", "T", "mT", "H", "mH", "real", "imag", "grad"}
    return name in _QUESTIONS


def batch_norm_of(
    function: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    name_of: NameOf,
) -> BatchNorm | None:
    """Read a call as a batch normalisation in eval mode with γ and β of its own.

    Parameters
    ----------
    function, args, kwargs
        The call.
    name_of
        Names tensors.

    Returns
    -------
    BatchNorm or None
        None for any other call, statistics of the batch, or tensors that are no whole parameters and buffers.
    """
    names = {F.batch_norm: _NORM, torch.batch_norm: _NORM_BELOW}.get(function)
    if names is None:
        return None
    call = {"training": False, "eps": 1e-5, **dict(zip(names, args, strict=False)), **kwargs}
    tensors = [call.get(name) for name in ("weight", "bias", "running_var")]
    if call["training"] or not all(isinstance(x, Tensor) for x in tensors):
        return None
    found = [name_of(x) for x in tensors]  # type: ignore[arg-type]
    if not all(found):
        return None
    weight, bias, variance = map(str, found)
    return BatchNorm(weight, bias, variance, float(call["eps"]))

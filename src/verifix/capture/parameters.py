"""Find the parameter that a tensor is, or is a view of, by the memory it occupies."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from verifix.capture.layer import reach
from verifix.model.tensors import storage_of


def extent(tensor: Tensor) -> int:
    """Return how many elements of memory lie from a tensor's first element to its last, both included."""
    return reach(tensor.shape, tensor.stride())


@dataclass(frozen=True)
class Normed:
    """A weight made by weight norm, and the names of the parameters it was made of."""

    weight: Tensor
    direction: str
    scale: str
    dim: int


class ParameterIndex:
    """Find the parameter that a tensor is, or is a view of, by the memory it occupies.

    Parameters
    ----------
    model
        The model; parameters that share memory in full are one entry, under the first name.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.parameters: dict[str, Tensor] = {}
        self._by_storage: dict[int, list[str]] = {}
        self._normed: dict[int, Normed] = {}
        seen: set[tuple[int, int, tuple[int, ...]]] = set()
        for name, parameter in model.named_parameters():
            storage = storage_of(parameter)
            place = (storage or id(parameter), int(parameter.storage_offset()), tuple(parameter.shape))
            if place in seen:
                continue
            seen.add(place)
            self.parameters[name] = parameter
            if storage:
                self._by_storage.setdefault(storage, []).append(name)

    def find(self, tensor: Tensor) -> str | None:
        """Return the name of the parameter whose memory contains the tensor's first element, or None."""
        normed = self.normed(tensor)
        if normed is not None:
            return normed.direction
        for name in self._by_storage.get(storage_of(tensor), ()):
            start = self.parameters[name].storage_offset()
            if start <= tensor.storage_offset() < start + extent(self.parameters[name]):
                return name
        return None

    def normed(self, tensor: Tensor) -> Normed | None:
        """Return what weight norm made the tensor of, if it did."""
        return self._normed.get(storage_of(tensor)) if self._normed else None

    def note_normed(self, weight: Tensor, direction: Tensor, scale: Tensor, dim: int) -> bool:
        """Remember a weight that weight norm made; tell whether it is made of whole parameters.

        Parameters
        ----------
        weight
            The result. It is kept until `forget_normed`, so that its memory is not given to another tensor.
        direction, scale, dim
            What it was made of.

        Returns
        -------
        bool
            Whether layers can be found in it.
        """
        names = self.find(direction), self.find(scale)
        whole = all(
            name is not None and self.parameters[name].shape == x.shape and self.parameters[name].is_contiguous()
            for name, x in zip(names, (direction, scale), strict=True)
        )
        if whole and names[0] and names[1]:
            self._normed[storage_of(weight)] = Normed(weight, names[0], names[1], dim)
        return whole

    def forget_normed(self) -> None:
        """Let the weights of the last run go."""
        self._normed.clear()

    def names_of(self, tensors: Iterable[Tensor]) -> set[str]:
        """Return the names of all parameters among some tensors."""
        return {name for name in map(self.find, tensors) if name is not None}


def partly_shared(parameters: Mapping[str, Tensor]) -> dict[str, str]:
    """Name parameters that lie partly in each other's memory: writing one would change the other."""
    reasons: dict[str, str] = {}
    by_storage: dict[int, list[tuple[int, int, str]]] = {}
    for name, x in parameters.items():
        if storage_of(x) and x.numel():
            start = int(x.storage_offset())
            by_storage.setdefault(storage_of(x), []).append((start, start + extent(x), name))
    for places in by_storage.values():
        for (_, end, first), (start, _, second) in itertools.pairwise(sorted(places)):
            if start < end:
                reasons |= {first: f"shares memory with {second!r}", second: f"shares memory with {first!r}"}
    return reasons


def shared_in_part(model: nn.Module) -> dict[str, str]:
    """Name the parameters of a model of which `partly_shared` says so; tied ones are one parameter."""
    return partly_shared(ParameterIndex(model).parameters)


def of_weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor, int]:
    """Return the arguments of weight norm by position: direction, scale and axis."""
    return v, g, dim

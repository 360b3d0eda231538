"""A layer: one weight matrix inside a parameter, read and written as a matrix."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from verifix.capture.kinds import KINDS, LayerKind


@dataclass(frozen=True)
class Layer:
    """One weight matrix with one kind of input rows: a parameter, or a view of one.

    Attributes
    ----------
    parameter
        Qualified name of the parameter that holds the weight.
    kind
        Name of the layer kind.
    groups
        Number of independent multiplications.
    offset, shape, stride
        Where the weight lies inside the parameter, in elements.
    scale, scale_dim
        For a weight-normed layer, whose weight is scale · parameter / ‖parameter‖: the name of the other parameter,
        and the axis that keeps its own norms. Empty otherwise.
    """

    parameter: str
    kind: str
    groups: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    scale: str = ""
    scale_dim: int = 0

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters that the weight consists of."""
        return (self.parameter, self.scale) if self.scale else (self.parameter,)

    def view(self, parameter: Tensor) -> Tensor:
        """Return this layer's weight as a view of its parameter, or of a tensor laid out like it."""
        return parameter.as_strided(self.shape, self.stride, parameter.storage_offset() + self.offset)

    @property
    def span(self) -> tuple[int, int]:
        """First and last element of the parameter that the weight reaches (half open)."""
        return self.offset, self.offset + reach(self.shape, self.stride)


def reach(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Return how many elements of memory lie from a view's first element to its last, both included."""
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


@dataclass(frozen=True)
class Bias:
    """What a layer adds to its outputs: a parameter, or a run of its elements.

    Attributes
    ----------
    parameter
        Qualified name.
    start, length
        The elements, in memory, from the parameter's first.
    """

    parameter: str
    start: int
    length: int

    def view(self, parameter: Tensor) -> Tensor:
        """Return the bias ``[groups · d_out]`` as a view of its parameter, or of a tensor laid out like it."""
        return parameter.as_strided((self.length,), (1,), parameter.storage_offset() + self.start)


def kind_of(layer: Layer) -> LayerKind:
    """Look a layer's adapter up by name."""
    return next(kind for kind in KINDS.values() if kind.name == layer.kind)


def read_matrix(layer: Layer, value: Callable[[str], Tensor]) -> Tensor:
    """Return the layer's weight as a float64 matrix ``[groups, d_out, d_in]``, given each parameter's value."""
    weight = _effective(layer, value) if layer.scale else value(layer.parameter)
    return kind_of(layer).matrix(layer.view(weight), layer.groups).double()


def write_matrix(layer: Layer, update: MutableMapping[str, Tensor], matrix: Tensor) -> None:
    """Write a matrix ``[groups, d_out, d_in]`` into the layer's part of its parameters, rounding once to their dtype.

    Parameters
    ----------
    layer
        The layer.
    update
        Holds a value for each of the layer's parameters, laid out as in the model; they are written to.
    matrix
        The new weight.
    """
    weight = kind_of(layer).weight(matrix, torch.Size(layer.shape))
    if not layer.scale:
        target = update[layer.parameter]
        layer.view(target).copy_(rounded_once(weight, target.dtype))
        return
    effective = _effective(layer, update.__getitem__)
    layer.view(effective).copy_(weight)
    norms = torch.norm_except_dim(effective, 2, layer.scale_dim)
    # A direction of length 0 would be 0 / 0: it stays what it was, and its scale 0 makes the weight 0.
    direction, scale = update[layer.parameter], update[layer.scale]
    direction.copy_(rounded_once(torch.where(norms > 0, effective, direction.double()), direction.dtype))
    scale.copy_(rounded_once(norms, scale.dtype))


def write_bias(bias: Bias, update: Mapping[str, Tensor], value: Tensor) -> None:
    """Write a bias ``[groups · d_out]`` into its place, rounding once.

    Parameters
    ----------
    bias
        The place.
    update
        Holds a value for the bias's parameter, laid out as in the model; it is written to.
    value
        The new bias, float64.
    """
    target = update[bias.parameter]
    bias.view(target).copy_(rounded_once(value, target.dtype))


def rounded_once(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 to the nearest value of another dtype.

    torch goes through float32 on the way to half precision, and so rounds twice. Rounding to odd on the way (of the
    two neighbours, the one whose last bit is 1) leaves the second rounding with all it needs to be exact.

    Parameters
    ----------
    x
        float64, any shape.
    dtype
        A floating dtype.

    Returns
    -------
    Tensor
        The same shape.
    """
    if dtype.itemsize > 2 or dtype.is_complex:
        return x.to(dtype)
    near = x.to(torch.float32)
    even = (near.view(torch.int32) & 1) == 0
    other = torch.nextafter(near, torch.where(x > near, torch.inf, -torch.inf).to(near.dtype))
    return torch.where(even & (near.double() != x), other, near).to(dtype)


def _effective(layer: Layer, value: Callable[[str], Tensor]) -> Tensor:
    """Return the weight that weight norm makes of its two parameters, in float64."""
    direction, scale = value(layer.parameter).double(), value(layer.scale).double()
    return torch._weight_norm(direction, scale, layer.scale_dim)

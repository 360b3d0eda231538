"""Run the borrowed model and see every multiplication of a parameter, whoever owns it.

Calls are intercepted at the level of functions (`TorchFunctionMode`), where a weight still is the parameter or a
view of it, and are matched to parameters by storage. Below that level autocast and composite operations have
already copied the weight. The lower level (`TorchDispatchMode`) is watched as well, only to name parameters that
something invisible to the first mode uses, such as a scripted function. The reasons, with what both modes saw in
a trial, are in ``docs/design.md``.
"""

from __future__ import annotations

import fnmatch
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode

from verifix.borrow import out_of_memory, storage_of, tensors_in
from verifix.constants import Constants
from verifix.errors import DataError, UsageError, VerifixError
from verifix.layers import KINDS, LayerKind, Product
from verifix.padding import RunningBatch, watching_padding
from verifix.reasons import MULTIPLY_NOT, explained, fixed_reasons

Sink = Callable[["Layer", Tensor], None]
"""Receives a layer and a chunk of its rows ``[groups, n, d_in]``, which is valid only during the call."""


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
        return self.offset, self.offset + _reach(self.shape, self.stride)


def _reach(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Return how many elements of memory lie from a view's first element to its last, both included."""
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def _extent(tensor: Tensor) -> int:
    return _reach(tensor.shape, tensor.stride())


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


@dataclass(frozen=True)
class Account:
    """What became of one parameter of two or more dimensions.

    Attributes
    ----------
    parameter
        Qualified name.
    kind
        Layer kinds that use it; empty if none does.
    status
        "corrected", "skipped" or "unused".
    reason
        Why it was skipped.
    layers
        The layers in it.
    size
        Number of elements.
    multiplies
        Whether it multiplies activations, rather than being looked up, added or put beside them.
    """

    parameter: str
    kind: str
    status: str
    reason: str
    layers: tuple[Layer, ...]
    size: int = 0
    multiplies: bool = True

    @property
    def fate(self) -> str:
        """The status, or "not_multiplied" for what is skipped and would not have counted."""
        return self.status if self.multiplies or self.status != "skipped" else "not_multiplied"


@dataclass
class Census:
    """Everything that was seen of a model's parameters while it ran.

    Attributes
    ----------
    layers
        Every layer seen, in the order of first use.
    used_by
        For each parameter, names of functions without an adapter that used it.
    batch
        Which rows of the batch that runs count.
    index
        The parameters of the model.
    failures
        For each parameter whose rows could not be read, why.
    calls
        How often each parameter has met inputs that no sample has a part in, in the batch that runs.
    added
        What has been added to each layer's outputs, call by call; None for calls that added no parameter.
    """

    layers: list[Layer] = field(default_factory=list)
    used_by: dict[str, set[str]] = field(default_factory=dict)
    batch: RunningBatch = field(default_factory=RunningBatch)
    index: ParameterIndex | None = None
    failures: dict[str, str] = field(default_factory=dict)
    calls: dict[tuple[str, ...], int] = field(default_factory=dict)
    added: dict[Layer, set[Bias | None]] = field(default_factory=dict)

    @property
    def biases(self) -> dict[Layer, Bias]:
        """The bias of each layer that has one of its own: always the same, and no other layer's."""
        owners = Counter(bias for found in self.added.values() for bias in found)
        return {
            layer: bias
            for layer, (bias, *others) in self.added.items()
            if bias is not None and not others and owners[bias] == 1
        }

    def begin(self, samples: int) -> None:
        """Get ready for the next batch, of this many samples."""
        self.batch.begin(samples)
        self.calls.clear()
        if self.index is not None:
            self.index.forget_normed()

    def note_use(self, parameter: str, function: str) -> None:
        """Remember that a function without an adapter used a parameter."""
        self.used_by.setdefault(parameter, set()).add(function)

    def note_failure(self, parameters: Iterable[str], kind: str, error: Exception) -> None:
        """Remember parameters whose rows could not be read, although the model itself runs."""
        line = " ".join(str(error).split())[:100]
        for name in parameters:
            self.failures[name] = f"rows of {kind} cannot be read ({type(error).__name__}: {line})"

    def accounts(self, model: nn.Module, selection: Selection) -> list[Account]:
        """Account for every parameter of two or more dimensions, in the model's own order.

        Parameters
        ----------
        model
            The model that ran.
        selection
            What the user includes and excludes.

        Returns
        -------
        list of Account
            One entry per parameter; tied parameters have one entry, under their first name.

        Raises
        ------
        UsageError
            If an include or exclude pattern matches no layer.
        """
        selection.check(self.layers)
        index = ParameterIndex(model)
        fixed = fixed_reasons(model) | partly_shared(index.parameters)
        names = [name for name, p in index.parameters.items() if p.ndim >= 2 or self._layers_of(name)]
        return [self._account(name, index.parameters, fixed, selection) for name in names]

    def _layers_of(self, name: str) -> tuple[Layer, ...]:
        return tuple(layer for layer in self.layers if layer.parameter == name)

    def _account(
        self, name: str, parameters: Mapping[str, Tensor], fixed: Mapping[str, str], selection: Selection
    ) -> Account:
        size = parameters[name].numel()
        scaled = next((layer.parameter for layer in self.layers if layer.scale == name), None)
        if scaled is not None:  # it has no rows of its own, and the same fate
            return replace(self._account(scaled, parameters, fixed, selection), parameter=name, layers=(), size=size)
        layers = self._layers_of(name)
        kind = ", ".join(dict.fromkeys(layer.kind for layer in layers))
        reason = (
            fixed.get(name)
            or self.failures.get(name)
            or self._reason_to_skip(name, parameters[name], layers, selection)
        )
        multiplies = bool(layers) or not self.used_by.get(name, set()) <= MULTIPLY_NOT
        status = "skipped" if reason else "corrected" if layers else "unused"
        return Account(name, kind, status, reason, layers, size, multiplies)

    def _reason_to_skip(self, name: str, parameter: Tensor, layers: tuple[Layer, ...], selection: Selection) -> str:
        others = self.used_by.get(name, set())
        if others:
            return f"{'also ' if layers else ''}{explained(others)}"
        if layers and not parameter.is_floating_point():
            return f"{parameter.dtype} weights are not supported"
        if any(0 in layer.stride for layer in layers):
            return "used through an expanded view"
        spans = sorted(layer.span for layer in layers)
        if spans and spans[-1][1] > _extent(parameter):
            return "used together with its neighbours in memory"
        if any(end > start for (_, end), (start, _) in zip(spans, spans[1:], strict=False)):
            return "used through overlapping views"
        return "" if all(map(selection.wants, layers)) else "not selected"


@dataclass(frozen=True)
class Selection:
    """Which layers are wanted: patterns are parameter-name globs or names of layer kinds.

    Attributes
    ----------
    include
        Only layers that match one of these; None for all.
    exclude
        Never layers that match one of these.
    only
        Of those, only these layers; None for all.
    """

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    only: frozenset[Layer] | None = None

    def wants(self, layer: Layer) -> bool:
        """Tell whether a layer is selected."""
        included = self.include is None or any(_matches(layer, p) for p in self.include)
        included = included and (self.only is None or layer in self.only)
        return included and not any(_matches(layer, p) for p in self.exclude)

    def check(self, layers: Sequence[Layer]) -> None:
        """Refuse a pattern that matches none of the layers seen.

        Parameters
        ----------
        layers
            Every layer of the model.

        Raises
        ------
        UsageError
            Naming the pattern and what there is to match.
        """
        for pattern in (*(self.include or ()), *self.exclude):
            if not any(_matches(layer, pattern) for layer in layers):
                known = sorted({layer.kind for layer in layers}) + [x.parameter for x in layers[:3]]
                raise UsageError(
                    f"the pattern {pattern!r} matches no layer; it must be a kind or a parameter-name glob such as "
                    f"{', '.join(known) or 'nothing: no layer was seen'}"
                )


def _matches(layer: Layer, pattern: str) -> bool:
    return layer.kind == pattern or fnmatch.fnmatchcase(layer.parameter, pattern)


def selection_of(include: Sequence[str] | None, exclude: Sequence[str] | None) -> Selection:
    """Build a selection from a user's lists of patterns."""
    return Selection(None if include is None else tuple(include), tuple(exclude or ()))


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
            if start <= tensor.storage_offset() < start + _extent(self.parameters[name]):
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


class _Interceptor(TorchFunctionMode):
    """Sees each function call; hands on the rows of those with an adapter before they run."""

    def __init__(self, index: ParameterIndex, census: Census, selection: Selection, sink: Sink) -> None:
        super().__init__()
        self.index = index
        self.census = census
        self.selection = selection
        self.sink = sink
        self.constants = Constants(index.model)
        self.depth = 0
        self._known: set[Layer] = set()
        self._alone: dict[tuple[Any, ...], list[tuple[int, ...]]] = {}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = tensors_in((args, kwargs))
        names = self.index.names_of(tensors)
        constant = self.constants.holds(tensors)
        self.depth += 1
        understood: set[str] = set()
        try:
            if func in KINDS and names:
                understood = self._record(KINDS[func], args, kwargs, tensors, constant=constant)
            result = func(*args, **kwargs)
        finally:
            self.depth -= 1
        self.constants.note(tensors, result, constant=constant, writes=_writes(func) or "out" in kwargs)
        if func is torch._weight_norm and names and self.index.note_normed(result, *_of_weight_norm(*args, **kwargs)):
            return result
        for name in names - understood:
            if not self._only_looks(name, func, result):
                self.census.note_use(name, _function_name(func))
        return result

    def _record(
        self, kind: LayerKind, args: Any, kwargs: Any, tensors: Sequence[Tensor], *, constant: bool
    ) -> set[str]:
        """Hand on the rows of every product; return the parameters whose use that explains."""
        keep, times = self.census.batch.keep, 1
        if constant and self._carries_samples(tensors):
            keep = keep and keep.for_constants()
        elif constant:  # the same rows come with every batch, whatever its size
            keep, times = None, self.census.batch.samples or 1
        understood: set[str] = set()
        try:
            for product in kind.products(args, kwargs, keep):
                name = self.index.find(product.weight)
                if name is None or (product.partner is not None and constant):
                    continue
                if product.weight.dtype != self.index.parameters[name].dtype:
                    continue  # the same memory, read as other numbers
                layer = self._layer(kind, name, product)
                self.census.added.setdefault(layer, set()).add(self._bias(product))
                self._hand_on(layer, product, times)
                understood.add(name)
        except VerifixError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            self.census.note_failure(self.index.names_of(tensors), kind.name, error)
        return understood

    def _bias(self, product: Product) -> Bias | None:
        """Name the parameter that a product adds to its outputs, if that is what it adds."""
        bias = product.bias
        name = None if bias is None else self.index.find(bias)
        if bias is None or name is None or bias.ndim != 1 or (len(bias) > 1 and bias.stride() != (1,)):
            return None
        return Bias(name, int(bias.storage_offset() - self.index.parameters[name].storage_offset()), len(bias))

    def _carries_samples(self, tensors: Sequence[Tensor]) -> bool:
        """Tell whether constants have been repeated for every sample, so that an axis grows with the samples."""
        # The first batch of a census is a single sample, whose shapes are remembered, call by call, to compare with.
        samples = self.census.batch.samples or 1
        shapes = [tuple(x.shape[:2]) for x in tensors if self.index.find(x) is None]
        names = tuple(sorted(self.index.names_of(tensors)))
        self.census.calls[names] = self.census.calls.get(names, -1) + 1
        key = names, self.census.calls[names]
        if samples == 1:
            self._alone[key] = shapes
        alone = self._alone.get(key, [(1, 1)] * len(shapes))
        axes = (pair for one, now in zip(alone, shapes, strict=False) for pair in zip(one, now, strict=False))
        return any(one == 1 and now == samples for one, now in axes)

    def _layer(self, kind: LayerKind, name: str, product: Product) -> Layer:
        """Name the layer of a product, and note it when it is new."""
        weight, normed = product.weight, self.index.normed(product.weight)
        start = 0 if normed else self.index.parameters[name].storage_offset()
        scale = (normed.scale, normed.dim) if normed else ()
        offset = int(weight.storage_offset() - start)
        layer = Layer(name, kind.name, product.groups, offset, tuple(weight.shape), tuple(weight.stride()), *scale)
        if layer not in self._known:
            self._known.add(layer)
            self.census.layers.append(layer)
        return layer

    def _hand_on(self, layer: Layer, product: Product, times: int) -> None:
        if not self.selection.wants(layer):
            return
        if self.census.batch.pad is not None:
            raise DataError(
                f"the token ids contain the model's pad id {self.census.batch.pad} and no mask of the padding has come "
                f"before layer {layer.parameter!r}; pass the attention_mask with them, or set padding=False "
                "(--no-padding) if these ids are no padding"
            )
        try:
            for rows in product.rows():
                self.census.batch.counted = True
                self.sink(layer, rows if times == 1 else rows.double() * math.sqrt(times))
        except DataError as error:
            raise type(error)(f"layer {layer.parameter!r}: {error}") from None

    def _only_looks(self, name: str, function: Callable[..., Any], result: Any) -> bool:
        """Tell views and questions about shape or dtype, which are no use, from arithmetic, which is one."""
        if _writes(function):
            return False
        return all(self.index.find(tensor) == name for tensor in tensors_in(result))


class _Witness(TorchDispatchMode):
    """Sees the parameters used outside of every function call that the interceptor sees."""

    def __init__(self, interceptor: _Interceptor) -> None:
        super().__init__()
        self.interceptor = interceptor

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.interceptor.depth == 0:
            for name in self.interceptor.index.names_of(tensors_in((args, kwargs))):
                if not self.interceptor._only_looks(name, func, result):
                    self.interceptor.census.note_use(name, f"{func} in a function that cannot be intercepted")
        return result


def _writes(function: Callable[..., Any]) -> bool:
    """Tell a function that changes its argument in place, by torch's own convention for names."""
    name = str(getattr(function, "__name__", "")).split(".", maxsplit=1)[0]
    if name == "__setitem__" or (
        name == "__set__" and getattr(getattr(function, "__self__", None), "__name__", "") == "data"
    ):
        return True
    harmless = name in {"requires_grad_", "detach_", "retain_grad_", "share_memory_"}
    return name.endswith("_") and not name.endswith("__") and not harmless


def partly_shared(parameters: Mapping[str, Tensor]) -> dict[str, str]:
    """Name parameters that lie partly in each other's memory: writing one would change the other."""
    reasons: dict[str, str] = {}
    by_storage: dict[int, list[tuple[int, int, str]]] = {}
    for name, x in parameters.items():
        if storage_of(x) and x.numel():
            start = int(x.storage_offset())
            by_storage.setdefault(storage_of(x), []).append((start, start + _extent(x), name))
    for places in by_storage.values():
        for (_, end, first), (start, _, second) in itertools.pairwise(sorted(places)):
            if start < end:
                reasons |= {first: f"shares memory with {second!r}", second: f"shares memory with {first!r}"}
    return reasons


def _of_weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor, int]:
    return v, g, dim


def _function_name(function: Callable[..., Any]) -> str:
    name: str = resolve_name(function) or getattr(function, "__name__", str(function))
    return name.removeprefix("torch.nn.functional.").removeprefix("torch.functional.").removeprefix("torch.")


@contextmanager
def intercepting(
    model: nn.Module, sink: Sink, selection: Selection | None = None, *, padding: bool = True, masked: bool = True
) -> Iterator[Census]:
    """Intercept a borrowed model's multiplications for as long as the context lasts.

    Parameters
    ----------
    model
        The model; see `verifix.borrow.borrowed`.
    sink
        Receives ``(layer, rows)`` for every selected layer, chunk by chunk, before the layer's function runs.
    selection
        Layers to hand on; all of them by default. The census lists the others too.
    padding
        Whether token ids that contain the model's pad id need a mask.
    masked
        Whether rows of padding are left out.

    Yields
    ------
    Census
        What has been seen so far. Its batch must begin before each run; see `Census.begin`.
    """
    index = ParameterIndex(model)
    census = Census(index=index)
    interceptor = _Interceptor(index, census, selection or Selection(), sink)
    watching = watching_padding(model, census.batch, padding=padding) if masked else nullcontext()
    with watching, interceptor, _Witness(interceptor):
        yield census

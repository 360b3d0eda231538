"""Run the borrowed model and see every multiplication of a parameter, whoever owns it.

Calls are intercepted at the level of functions (`TorchFunctionMode`), where a weight still is the parameter or a
view of it, and are matched to parameters by storage. Below that level autocast and composite operations have
already copied the weight. The lower level (`TorchDispatchMode`) is watched as well, only to name parameters that
something invisible to the first mode uses, such as a scripted function. The reasons, with what both modes saw in
a trial, are in ``docs/design.md``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from verifix.capture.batch_invariant import Constants
from verifix.capture.census import Census
from verifix.capture.kinds import KINDS, LayerKind, Product
from verifix.capture.kinds.lags import Patches
from verifix.capture.layer import Bias, Layer
from verifix.capture.padding import Padding, watching_padding
from verifix.capture.parameters import ParameterIndex, of_weight_norm
from verifix.capture.selection import Selection
from verifix.capture.sharing import Call, Layers, Sharing
from verifix.errors import DataError, VerifixError
from verifix.model.run import out_of_memory
from verifix.model.tensors import storage_of, tensors_in

Sink = Callable[[Layer, Tensor], None]
"""Receives a layer and a chunk of its rows ``[groups, n, d_in]``, which is valid only during the call."""


class Taker(Protocol):
    """Takes in the rows of layers; what it is given is valid only during the call."""

    def rows(self, layers: Layers, rows: Tensor) -> None:
        """Take in a chunk of rows ``[groups, n, d_in]`` that all these layers see."""

    def patches(self, layers: Layers, patches: Patches) -> bool:
        """Take in the input of a convolution in place of its rows, if that is better; tell whether it is."""

    def waits(self, layer: Layer) -> bool:
        """Tell whether a selected layer is handed on in another pass over the same batches."""

    def called(self, layer: Layer) -> None:
        """Note that a layer is called whose rows are about to be given, or will be with those of others."""

    def shares(self, layer: Layer) -> bool:
        """Tell whether a layer may be given together with others that see the same rows."""


@dataclass(frozen=True)
class _Each:
    """Hands the rows of each layer to a sink."""

    sink: Sink

    def rows(self, layers: Layers, rows: Tensor) -> None:
        self.sink(layers[0], rows)

    def patches(self, *_: object) -> bool:
        return False

    def waits(self, _: Layer) -> bool:
        return False

    def called(self, _: Layer) -> None:
        return

    def shares(self, _: Layer) -> bool:
        return False


INTO_PYTHON = frozenset(
    getattr(Tensor, name)
    for name in (
        *("tolist", "item", "numpy", "__array__", "__dlpack__", "untyped_storage", "__format__"),
        *("__float__", "__int__", "__index__", "__complex__"),
    )
)
"""Functions that turn a tensor into numbers that nothing here can follow. Shapes, and what is only asked, are none."""

_PRODUCTS: dict[object, int] = {torch.ops.aten.addmm.default: 1, torch.ops.aten.mm.default: 0}
"""Matrix products that a linear layer becomes, and which argument is the input; the transposed weight is the next."""

Meeting = tuple[tuple[str, ...], int]
"""Names of parameters, and the number of the call in a batch that they meet in."""


class _Interceptor(TorchFunctionMode):
    """Sees each function call; hands on the rows of those with an adapter before they run."""

    def __init__(self, index: ParameterIndex, census: Census, selection: Selection, taker: Taker) -> None:
        super().__init__()
        self.index = index
        self.census = census
        self.selection = selection
        self.taker = taker
        self.sharing = Sharing(taker.shares, taker.waits)
        self.constants = Constants(index.model)
        self.depth = 0
        self._buffers = {
            storage: (name, buffer.numel())
            for name, buffer in index.model.named_buffers()
            if buffer.ndim >= 2 and buffer.is_floating_point() and (storage := storage_of(buffer))
        }
        self._known: set[Layer] = set()
        self.inside: list[Call] = []
        self._alone: dict[Meeting, list[tuple[int, ...]]] = {}

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.census.reading:
            return func(*args, **kwargs)
        tensors = tensors_in((args, kwargs))
        names = self.index.names_of(tensors)
        constant = self.constants.holds(tensors)
        if not constant and func in INTO_PYTHON:
            self.census.untraced = True
        if not constant and func in KINDS and self._buffers:
            self.census.buffers.update(self._buffers[at] for x in tensors if (at := storage_of(x)) in self._buffers)
        if _writes(func) or "out" in kwargs or func in INTO_PYTHON:
            self._give(*self.sharing.touched(tensors))
        self.depth += 1
        understood: set[str] = set()
        try:
            if func in KINDS and names:
                understood = self._record(KINDS[func], args, kwargs, tensors, constant=constant)
            result = func(*args, **kwargs)
            self._give(*self.inside)  # which were not seen inside
        finally:
            self.depth -= 1
            self.inside.clear()
        self.constants.note(tensors, result, constant=constant, writes=_writes(func) or "out" in kwargs)
        if func is torch._weight_norm and names and self.index.note_normed(result, *of_weight_norm(*args, **kwargs)):
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
        if constant:
            call, inputs = self._call(tensors), [x for x in tensors if self.index.find(x) is None]
            if self._carries_samples(call, inputs):
                keep = keep and keep.for_constants()
            elif self._comes_again(call[0], inputs):  # with every batch, whatever its size
                keep, times = None, self.census.batch.samples or 1
        understood: set[str] = set()
        try:
            if any(map(is_functorch_wrapped_tensor, tensors)):
                raise RuntimeError("inside torch.func, whose tensors must not leave it")
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

    def _call(self, tensors: Sequence[Tensor]) -> Meeting:
        """Return which call of the batch it is in which these parameters meet inputs that seem constant."""
        names = tuple(sorted(self.index.names_of(tensors)))
        self.census.calls[names] = self.census.calls.get(names, -1) + 1
        return names, self.census.calls[names]

    def _carries_samples(self, call: Meeting, inputs: Sequence[Tensor]) -> bool:
        """Tell whether constants have been repeated for every sample, so that an axis grows with the samples."""
        # The first batch of a census is a single sample, whose shapes are remembered, call by call, to compare with.
        samples = self.census.batch.samples or 1
        shapes = [tuple(x.shape[:2]) for x in inputs]
        if samples == 1:
            self._alone[call] = shapes
        alone = self._alone.get(call, [(1, 1)] * len(shapes))
        axes = (pair for one, now in zip(alone, shapes, strict=False) for pair in zip(one, now, strict=False))
        return any(one == 1 and now == samples for one, now in axes)

    def _comes_again(self, names: tuple[str, ...], inputs: Sequence[Tensor]) -> bool:
        """Tell whether inputs come with every batch; where samples have become Python numbers, by comparing them."""
        census = self.census
        again = any(
            len(own) == len(inputs) and all(map(torch.equal, own, inputs)) for own in census.constants.get(names, [])
        )
        if census.trial == 1 or (census.trial == 2 and again):
            table = census.constants if census.trial == 1 else census.confirmed
            table.setdefault(names, []).append([x.detach().clone() for x in inputs])
        return again or not census.untraced

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
                f"the token ids contain the model's pad id {self.census.batch.pad}, and no padding mask was seen "
                f"before layer {layer.parameter!r}; pass the attention_mask with the ids, or set padding=False "
                "(--no-padding) if these ids are not padding"
            )
        if self.taker.waits(layer):
            self.census.batch.counted = True
            return
        self.taker.called(layer)
        if self.census.trial == 1:
            self.sharing.learn(layer, product, times)
        if product.within is not None:
            self.inside.append(Call((layer,), product, times, None))
        else:
            self._give(*self.sharing.due(layer, product, times))

    def look_inside(self, function: object, args: Sequence[Any]) -> None:
        """Hand on the rows of weights that meet their inputs inside the function that runs."""
        at = _PRODUCTS.get(function)
        if at is None or not self.inside:
            return
        x, weight = args[at], args[at + 1]
        for call in [*self.inside]:
            own, within = call.product.weight, call.product.within
            same = storage_of(weight), weight.storage_offset(), weight.shape
            if within is not None and same == (storage_of(own), own.storage_offset(), own.mT.shape):
                self.inside.remove(call)
                self._give(replace(call, product=replace(call.product, rows=partial(within, x))))

    def _give(self, *calls: Call) -> None:
        """Hand on the rows of calls to the layers that they belong to."""
        for call in calls:
            # What is computed here is not the model's: watching it would cost more than computing it.
            with _disable_current_modes(), self._failing(call):
                self._read(call)

    @contextmanager
    def _failing(self, call: Call) -> Iterator[None]:
        """Name the layers of a call whose rows cannot be read."""
        try:
            yield
        except DataError as error:
            raise type(error)(f"layer {call.layers[0].parameter!r}: {error}") from None
        except VerifixError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            self.census.note_failure([layer.parameter for layer in call.layers], call.layers[0].kind, error)

    def _read(self, call: Call) -> None:
        product, times = call.product, call.times
        if not call.unchanged:
            raise RuntimeError("their memory was written to by something that cannot be intercepted")
        if times == 1 and product.patches is not None and self.taker.patches(call.layers, product.patches):
            self.census.batch.counted = True
            return
        for rows in product.rows():
            self.census.batch.counted = True
            self.taker.rows(call.layers, rows if times == 1 else rows.double() * math.sqrt(times))

    def finish(self) -> None:
        """Hand on what waits, after a batch has run."""
        self._give(*self.sharing.rest())
        self.census.shared = self.sharing.learned()

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
        if func._schema.is_mutable:  # type: ignore[attr-defined] # an operator, which has a schema
            self.interceptor._give(*self.interceptor.sharing.touched(tensors_in((args, kwargs))))
        if self.interceptor.inside:
            self.interceptor.look_inside(func, args)
        result = func(*args, **(kwargs or {}))
        if self.interceptor.depth == 0 and not self.interceptor.census.reading:
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


def _function_name(function: Callable[..., Any]) -> str:
    name: str = resolve_name(function) or getattr(function, "__name__", str(function))
    return name.removeprefix("torch.nn.functional.").removeprefix("torch.functional.").removeprefix("torch.")


@contextmanager
def intercepting(
    model: nn.Module,
    taker: Taker | Sink,
    selection: Selection | None = None,
    *,
    padding: Padding | None = None,
    masked: bool = True,
) -> Iterator[Census]:
    """Intercept a borrowed model's multiplications for as long as the context lasts.

    Parameters
    ----------
    model
        The model; see `verifix.model.borrow.borrowed`.
    taker
        Receives the rows of every selected layer, chunk by chunk, before the layer's function runs, or that of the last
        layer that sees the same rows. A function receives ``(layer, rows)``, each layer on its own.
    selection
        Layers to hand on; all of them by default. The census lists the others too.
    padding
        How padding is told; as usual by default.
    masked
        Whether rows of padding are left out.

    Yields
    ------
    Census
        What has been seen so far. Its batch must begin before each run, and finish after it; see `Census.begin` and
        `Census.finish`.
    """
    index = ParameterIndex(model)
    census = Census(index=index)
    taker = _Each(taker) if callable(taker) else taker
    interceptor = _Interceptor(index, census, selection or Selection(), taker)
    census.finish = interceptor.finish
    watching = watching_padding(model, census.batch, padding or Padding()) if masked else nullcontext()
    with watching, interceptor, _Witness(interceptor):
        yield census

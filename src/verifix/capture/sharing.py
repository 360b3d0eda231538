"""Layers that see the very same rows, such as q, k and v: their product is made once for all of them.

Which layers they are is learned from the trial, a single sample: those whose inputs were the same tensor objects, call
by call. In the batches that count, the rows of the first of them wait until the others have been called with the same
object, unchanged, and are then handed on for all. Nothing depends on that guess: a layer that is called with another
input has its own rows, and what has waited is handed on before a function writes into it, and after the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from verifix.capture.kinds import Product
from verifix.capture.layer import Layer
from verifix.model.tensors import storage_of

Layers = tuple[Layer, ...]
"""Layers that see the same rows, in the order of their calls."""


@dataclass
class Call:
    """A product whose rows are not handed on yet, and the layers that they belong to.

    Attributes
    ----------
    layers
        One or several.
    product
        That of the first layer.
    times
        How often its rows count.
    version
        Of its input; see `version_of`.
    """

    layers: Layers
    product: Product
    times: int
    version: int | None

    def is_of(self, product: Product, times: int) -> bool:
        """Tell whether another product has the same rows."""
        if self.product.source is None or product.source is None:
            return False
        (x, how), (other, also) = self.product.source, product.source
        return x is other and how == also and times == self.times and version_of(product) == self.version

    @property
    def unchanged(self) -> bool:
        """Whether nothing has been written into its input since it was called."""
        return version_of(self.product) == self.version


def version_of(product: Product) -> int | None:
    """Return how often a product's input has been written to; None if nothing counts that."""
    if product.source is None or product.source[0].is_inference():
        return None
    return int(product.source[0]._version)


class Sharing:
    """Puts calls together whose rows are the same.

    Parameters
    ----------
    shares
        Tells whether a layer's rows may be those of others.
    waits
        Tells whether a layer has its turn in another pass, so that nobody waits for it.
    """

    def __init__(self, shares: Callable[[Layer], bool], waits: Callable[[Layer], bool]) -> None:
        self._shares, self._waits = shares, waits
        self._inputs: dict[Layer, list[object]] = {}
        self._seen: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._groups: dict[Layer, Layers] = {}
        self._waiting: dict[Layers, Call] = {}

    def learn(self, layer: Layer, product: Product, times: int) -> None:
        """Note the input of a call in the trial."""
        token = object()
        version = version_of(product)
        if product.source is not None and version is not None:
            x, how = product.source
            token = self._seen.setdefault(x, {}).setdefault((how, times, version), token)
        self._inputs.setdefault(layer, []).append(token)

    def learned(self) -> dict[Layer, Layer]:
        """Return, for each layer that has had the same inputs as another one in the trial, the first of these."""
        if self._inputs:
            found: dict[tuple[object, ...], list[Layer]] = {}
            for layer, inputs in self._inputs.items():
                found.setdefault(tuple(inputs), []).append(layer)
            groups = (tuple(layers) for layers in found.values() if len(layers) > 1)
            self._groups = {layer: layers for layers in groups for layer in layers}
            self._inputs, self._seen = {}, WeakIdKeyDictionary()
        return {layer: layers[0] for layer, layers in self._groups.items() if layer != layers[0]}

    def due(self, layer: Layer, product: Product, times: int) -> list[Call]:
        """Take a call in, and return those whose rows are to be handed on now."""
        version = version_of(product)
        group = self._groups.get(layer, ())
        if not group or version is None or not self._shares(layer):
            return [Call((layer,), product, times, version)]
        due = []
        call = self._waiting.pop(group, None)
        if call is not None and call.is_of(product, times) and layer not in call.layers:
            call.layers += (layer,)
        else:
            due = [call] if call is not None else []
            call = Call((layer,), product, times, version)
        if len(call.layers) == sum(not self._waits(other) for other in group):
            return [*due, call]
        self._waiting[group] = call
        return due

    def touched(self, tensors: Sequence[Tensor]) -> list[Call]:
        """Return the waiting calls whose input lies in the memory of some tensors, which may be written to."""
        if not self._waiting:
            return []
        memory = {storage_of(x) for x in tensors}
        return [self._waiting.pop(group) for group, call in [*self._waiting.items()] if _memory(call) in memory]

    def rest(self) -> list[Call]:
        """Return all waiting calls."""
        calls = [*self._waiting.values()]
        self._waiting.clear()
        return calls


def _memory(call: Call) -> Any:
    return None if call.product.source is None else storage_of(call.product.source[0])

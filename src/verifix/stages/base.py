"""What a stage is, and what it works with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from verifix.capture import Layer, Selection
from verifix.collect import Collected, collect
from verifix.moments import Moments
from verifix.samples import Samples
from verifix.scoring import Update, predict, weights_replaced
from verifix.strength import Grid

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What one `fit` takes, for choosing and for telling the user.

    Attributes
    ----------
    flops
        Floating-point operations of the first strength, in float64.
    flops_again
        Of each further strength in the same context.
    nbytes
        Memory that the context holds for it, in bytes.
    """

    flops: float
    flops_again: float
    nbytes: int


@dataclass
class Context:
    """Samples to fit on, and the model as the earlier stages left it.

    A context belongs to one subset of the verified samples: all of them for the correction itself, all but one fold
    for cross-fitting. Its moments come from the shared first pass until a stage has changed weights; after that they
    are captured again, from the changed model and this subset alone.

    Attributes
    ----------
    model
        The working copy of the model, with its original weights.
    samples
        All verified samples.
    indices
        Those that may be fitted on.
    folds
        Numbers of the folds that `indices` come from.
    collected
        The first pass: moments per fold of the original weights.
    earlier
        Moments of earlier verified samples, by layer; valid for the original weights only.
    batch_size, device, selection, padding
        How to run the model.
    stored_as
        Dtypes, by parameter name, that new weights are rounded to where they are not those of the model.
    update
        New weights by the stages so far.
    memo
        For a stage to keep what its strengths share; lives as long as the context.
    """

    model: nn.Module
    samples: Samples
    indices: Sequence[int]
    folds: Sequence[int]
    collected: Collected
    earlier: Mapping[Layer, Moments]
    batch_size: int
    device: torch.device
    selection: Selection
    padding: bool = True
    stored_as: Mapping[str, torch.dtype] = field(default_factory=dict)
    update: Update = field(default_factory=dict)
    memo: dict[str, Any] = field(default_factory=dict)

    @property
    def layers(self) -> list[Layer]:
        """The layers to correct."""
        return self.collected.layers

    def moments(self, layer: Layer) -> Moments:
        """Return a layer's moments over this context's samples under its current weights."""
        if not self.update:
            return self.collected.moments(layer, self.folds, self.earlier)
        again = self.remember("collected", self._capture_again)
        return again.moments(layer, [0], {})

    def parameter(self, name: str) -> Tensor:
        """Return a parameter's current value, laid out as in the model; not to be written to."""
        original = dict(self.model.named_parameters())[name]
        return self.update.get(name, original)

    def writable(self, name: str) -> Tensor:
        """Return a copy of a parameter's value to write to: laid out as in the model, in the dtype it is rounded to."""
        value = self.parameter(name)
        dtype = self.stored_as.get(name, value.dtype)
        copy = torch.empty_strided(value.shape, value.stride(), dtype=dtype, device=value.device)
        return copy.copy_(value)

    def remember(self, key: str, make: Callable[[], T]) -> T:
        """Return what `make` returns, made once per context."""
        if key not in self.memo:
            self.memo[key] = make()
        value: T = self.memo[key]
        return value

    def after(self, update: Update) -> Context:
        """Return the context that the next stage works with."""
        return replace(self, update={**self.update, **update}, memo={})

    def predict(self, indices: Sequence[int], update: Update) -> Tensor:
        """Return logits ``[n, outputs]`` of some samples under the current weights with an update on top."""
        with weights_replaced(self.model, {**self.update, **update}):
            return predict(self.model, self.samples, indices, self.batch_size, self.device)

    def _capture_again(self) -> Collected:
        with weights_replaced(self.model, self.update):
            return collect(
                self.model,
                self.samples,
                [self.indices],
                batch_size=self.batch_size,
                device=self.device,
                selection=self.selection,
                padding=self.padding,
            )


class Stage(Protocol):
    """One step of a correction, with a strength and the choice to do nothing.

    A stage sees a context and nothing else: not the folds' held-out samples, not the scores of its candidates.
    """

    name: str

    def candidates(self, context: Context) -> Grid:
        """Return the strengths to choose from."""

    def fit(self, context: Context, strength: float) -> Update:
        """Return new weights, fitted on the context's samples with this strength."""

    def cost(self, context: Context) -> Cost:
        """Estimate what `fit` takes, before running it."""

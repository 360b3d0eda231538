"""What a stage works with: samples to fit on, and the model as the earlier stages left it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from verifix.capture.collect import Collected, collect
from verifix.capture.layer import Layer
from verifix.capture.selection import Selection
from verifix.model.predict import predict
from verifix.model.samples import Samples
from verifix.model.weights import Update, tensors_of, weights_replaced
from verifix.moments import Moments
from verifix.recipe.candidates import Strength

T = TypeVar("T")


@dataclass
class Context:
    """Samples to fit on, and the model as the earlier stages left it.

    A context belongs to one subset of the verified samples: all of them for the correction itself, all but one fold
    for cross-fitting, all but two for cross-fitting inside a proof. Its moments come from the shared first pass until
    a stage has changed weights; after that they are captured again, from the changed model and this subset alone.

    Attributes
    ----------
    model
        The working copy of the model, with its original weights.
    samples
        All verified samples.
    members
        Indices of the samples of every fold.
    folds
        Numbers of the folds that may be fitted on.
    collected
        The first pass: moments per fold of the original weights.
    earlier
        Moments of earlier verified samples, by layer; valid for the original weights only.
    batch_size, device, selection, padding
        How to run the model.
    stored_as
        Dtypes, by parameter name, that new weights are rounded to where they are not those of the model.
    seed
        Seed of what a stage draws at random.
    asked
        Folds that fits of this context are scored on; None for all that they lack.
    update
        New weights by the stages so far.
    strengths
        Strengths of the stages so far, by name.
    memo
        For a stage to keep what its strengths share; lives as long as one round of strengths.
    learned
        For a stage to keep what is small and took long to learn; lives until the next stage.
    shared
        For a stage to keep what contexts have in common, by what it was made from; lives until the next stage.
    """

    model: nn.Module
    samples: Samples
    members: Sequence[Sequence[int]]
    folds: Sequence[int]
    collected: Collected
    earlier: Mapping[Layer, Moments]
    batch_size: int
    device: torch.device
    selection: Selection
    padding: bool = True
    stored_as: Mapping[str, torch.dtype] = field(default_factory=dict)
    seed: int = 0
    asked: Sequence[int] | None = None
    update: Update = field(default_factory=dict)
    strengths: Mapping[str, Strength] = field(default_factory=dict)
    memo: dict[str, Any] = field(default_factory=dict)
    learned: dict[Any, Any] = field(default_factory=dict)
    shared: dict[Any, Any] = field(default_factory=dict)

    @property
    def indices(self) -> list[int]:
        """The samples that may be fitted on."""
        return self.samples_of(self.folds)

    @property
    def layers(self) -> list[Layer]:
        """The layers to correct."""
        return self.collected.layers

    @property
    def labels(self) -> Tensor:
        """The labels of `indices`, ``[n]``."""
        return self.samples.labels[self.indices]

    @property
    def outside(self) -> list[int]:
        """The samples to score fits of this context on, ascending; none of them is in `indices`."""
        own = set(self.folds)
        asked = range(len(self.members)) if self.asked is None else self.asked
        return self.samples_of([fold for fold in asked if fold not in own])

    def without(self, fold: int) -> Context:
        """Return the context of all of these folds but one."""
        return replace(self, folds=[k for k in self.folds if k != fold], memo={}, learned={})

    def samples_of(self, folds: Sequence[int]) -> list[int]:
        """Return the indices of the samples of some folds, ascending."""
        return sorted(int(i) for fold in folds for i in self.members[fold])

    def moments(self, layer: Layer) -> Moments:
        """Return a layer's moments over this context's samples under its current weights."""
        if not self.update:
            return self.collected.moments(layer, self.folds, self.earlier)
        again = self.remember("collected", self._capture_again)
        return again.moments(layer, [0], {})

    def parameter(self, name: str) -> Tensor:
        """Return the current value of a parameter or buffer, laid out as in the model; not to be written to."""
        return self.update[name] if name in self.update else self.original(name)

    def original(self, name: str) -> Tensor:
        """Return the value that a parameter or buffer had before any stage; not to be written to."""
        return tensors_of(self.model)[name]

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

    def learn(self, key: Any, make: Callable[[], T]) -> T:
        """Return what `make` returns, made once per context and stage; for what is small, and the next context."""
        if key not in self.learned:
            self.learned[key] = make()
        value: T = self.learned[key]
        return value

    @contextmanager
    def fresh(self) -> Iterator[Context]:
        """Lend this context with a memo of its own, which is emptied at the end.

        What is kept there may refer to the context itself, and so would outlive it until such cycles are looked for.

        Yields
        ------
        Context
            To fit one round of strengths in.
        """
        context = replace(self, memo={})
        try:
            yield context
        finally:
            context.memo.clear()

    def after(self, stage: str, strength: Strength, update: Update) -> Context:
        """Return the context that the next stage works with."""
        strengths = {**self.strengths, stage: strength}
        return replace(self, update={**self.update, **update}, strengths=strengths, memo={}, learned={})

    @contextmanager
    def corrected(self, update: Update | None = None) -> Iterator[nn.Module]:
        """Lend the model under the current weights, with an update on top."""
        with weights_replaced(self.model, {**self.update, **(update or {})}):
            yield self.model

    def predict(self, indices: Sequence[int], update: Update) -> Tensor:
        """Return logits ``[n, outputs]`` of some samples under the current weights with an update on top."""
        with self.corrected(update) as model:
            return predict(model, self.samples, indices, self.batch_size, self.device)

    def _capture_again(self) -> Collected:
        with self.corrected() as model:
            return collect(
                model,
                self.samples,
                [self.indices],
                batch_size=self.batch_size,
                device=self.device,
                selection=self.selection,
                padding=self.padding,
            )

"""What a stage works with: samples to fit on, and the model as the earlier stages left it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from verifix.capture.collect import Collected, collect
from verifix.capture.layer import Layer
from verifix.capture.memory_plan import Limits
from verifix.capture.padding import Padding
from verifix.capture.selection import Selection
from verifix.model.batching import with_smaller_batches
from verifix.model.groups import in_order
from verifix.model.predict import predict
from verifix.model.samples import Samples
from verifix.model.unlabelled import Unlabelled
from verifix.model.weights import Update, tensors_of, weights_replaced
from verifix.moments import Moments
from verifix.recipe.candidates import Strength

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Run:
    """What all contexts of one correction have in common.

    Attributes
    ----------
    model
        The working copy of the model, with its original weights.
    samples
        All verified samples.
    members
        Indices of the samples of every fold.
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
    exact
        Whether moments need products in float64.
    limits
        What the moments may take.
    frugal
        Whether what strengths share is made anew for each layer, instead of being kept.
    work
        Multiply-adds of the model for the first sample, whatever a context may read: all folds train for as long.
    unlabelled
        Inputs whose labels are not known, none of which is a verified sample; None if there are none.
    beside
        Their moments, by layer; valid for the original weights only.
    copies
        Moments of jittered copies of the samples, by fold, of the original weights; None if there are no copies.
    """

    model: nn.Module
    samples: Samples
    members: Sequence[Sequence[int]]
    collected: Collected
    earlier: Mapping[Layer, Moments]
    batch_size: int
    device: torch.device
    selection: Selection
    padding: Padding = field(default_factory=Padding)
    stored_as: Mapping[str, torch.dtype] = field(default_factory=dict)
    seed: int = 0
    exact: bool = False
    limits: Limits = field(default_factory=Limits)
    frugal: bool = False
    work: float = 0.0
    unlabelled: Unlabelled | None = None
    beside: Mapping[Layer, Moments] = field(default_factory=dict)
    copies: Collected | None = None

    def collect(self, samples: Samples, folds: Sequence[Sequence[int]], batch_size: int, **more: Any) -> Collected:
        """Capture moments of samples under the weights that the model has, in the way of the first pass.

        Parameters
        ----------
        samples
            The samples.
        folds
            Indices of those of each fold.
        batch_size
            Samples per batch.
        **more
            See `verifix.capture.collect.collect`.

        Returns
        -------
        Collected
            The moments.
        """
        how: dict[str, Any] = {"device": self.device, "selection": self.selection, "padding": self.padding}
        how |= {"exact": self.exact, "limits": self.limits}
        return collect(self.model, samples, folds, batch_size=batch_size, **how, **more)

    def by_layer(self, layers: Sequence[Layer], make: Callable[[Layer], T]) -> Mapping[Layer, T]:
        """Return what is made of every layer: at once, or each anew when it is asked for."""
        return _Made(layers, make) if self.frugal else {layer: make(layer) for layer in layers}


class _Made(Mapping[Layer, T]):
    """What is made of layers, one at a time, and not kept."""

    def __init__(self, layers: Sequence[Layer], make: Callable[[Layer], T]) -> None:
        self._layers, self._make = layers, make

    def __getitem__(self, layer: Layer) -> T:
        return self._make(layer)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self._layers)

    def __len__(self) -> int:
        return len(self._layers)


@dataclass(frozen=True, eq=False)
class Context:
    """Samples to fit on, and the model as the earlier stages left it.

    A context belongs to one subset of the verified samples: all of them for the correction itself, all but one fold
    for cross-fitting, all but two for cross-fitting inside a proof. Nothing in it changes, and two contexts are the
    same only if they are one object.

    Attributes
    ----------
    run
        What all contexts have in common.
    folds
        Numbers of the folds that may be fitted on.
    asked
        Folds that fits of this context are scored on; None for all that they lack.
    update
        New weights by the stages so far.
    strengths
        Strengths of the stages so far, by name.
    logits
        What the current weights predict for the samples outside, ``[n, outputs]``; None if not known yet.
    """

    run: Run
    folds: Sequence[int]
    asked: Sequence[int] | None = None
    update: Update = field(default_factory=dict)
    strengths: Mapping[str, Strength] = field(default_factory=dict)
    logits: Tensor | None = None

    @property
    def indices(self) -> list[int]:
        """The samples that may be fitted on."""
        return self.samples_of(self.folds)

    @property
    def layers(self) -> list[Layer]:
        """The layers to correct."""
        return self.run.collected.layers

    @property
    def labels(self) -> Tensor:
        """The labels of `indices`, ``[n]``."""
        return self.run.samples.labels[self.indices]

    @property
    def groups(self) -> Tensor | None:
        """Which of `indices` are not independent, int64 ``[n]``; None if all are."""
        return self.groups_of(self.indices)

    @property
    def outside(self) -> list[int]:
        """The samples to score fits of this context on, ascending; none of them is in `indices`."""
        own = set(self.folds)
        asked = range(len(self.run.members)) if self.asked is None else self.asked
        return self.samples_of([fold for fold in asked if fold not in own])

    def without(self, fold: int) -> Context:
        """Return the context of all of these folds but one."""
        return replace(self, folds=[k for k in self.folds if k != fold], logits=None)

    def asking(self, folds: Sequence[int]) -> Context:
        """Return the same context, to be scored on the samples of some folds alone, which it was scored on before."""
        other = replace(self, asked=folds)
        if self.logits is not None:
            kept = set(other.outside)
            other = replace(other, logits=self.logits[[k for k, i in enumerate(self.outside) if i in kept]])
        return other

    def samples_of(self, folds: Sequence[int]) -> list[int]:
        """Return the indices of the samples of some folds, ascending."""
        return sorted(int(i) for fold in folds for i in self.run.members[fold])

    def groups_of(self, indices: Sequence[int]) -> Tensor | None:
        """Return which of some samples are not independent, int64 ``[n]``; None if all are."""
        own = in_order(self.run.samples.groups[indices])
        return None if own.max() + 1 == len(own) else torch.from_numpy(own)

    def moments(self) -> Callable[[Layer], Moments]:
        """Return what gives a layer's moments over this context's samples under its current weights.

        Those of the original weights come from the first pass. Once a stage has changed weights, each call captures
        them again, in a pass of the changed model over this subset: keep what it returns while it is needed.

        Returns
        -------
        callable
            Layer → moments.
        """
        run = self.run
        if not self.update:
            return partial(run.collected.moments, folds=self.folds, earlier=run.earlier)
        with self.corrected():
            again = run.collect(run.samples, [self.indices], run.batch_size)
        return partial(again.moments, folds=[0], earlier={})

    def parameter(self, name: str) -> Tensor:
        """Return the current value of a parameter or buffer, laid out as in the model; not to be written to."""
        return self.update[name] if name in self.update else self.original(name)

    def precision(self, layer: Layer) -> torch.dtype:
        """Return what to solve a layer's projection in: float64 for weights that may be kept, and of float64 models."""
        scored = len(self.folds) < len(self.run.members)  # by samples that it lacks, and then thrown away
        return torch.float32 if scored and self.original(layer.parameter).dtype != torch.float64 else torch.float64

    def original(self, name: str) -> Tensor:
        """Return the value that a parameter or buffer had before any stage; not to be written to."""
        return tensors_of(self.run.model)[name]

    def writable(self, name: str) -> Tensor:
        """Return a copy of a parameter's value to write to: laid out as in the model, in the dtype it is rounded to."""
        value = self.parameter(name)
        dtype = self.run.stored_as.get(name, value.dtype)
        copy = torch.empty_strided(value.shape, value.stride(), dtype=dtype, device=value.device)
        return copy.copy_(value)

    def after(self, stage: str, strength: Strength, update: Update, logits: Tensor | None = None) -> Context:
        """Return the context that the next stage works with; `logits` are those of its weights, if they are known."""
        strengths = {**self.strengths, stage: strength}
        return replace(self, update={**self.update, **update}, strengths=strengths, logits=logits)

    @contextmanager
    def corrected(self, update: Update | None = None) -> Iterator[nn.Module]:
        """Lend the model under the current weights, with an update on top."""
        with weights_replaced(self.run.model, {**self.update, **(update or {})}):
            yield self.run.model

    def predict(self, indices: Sequence[int], update: Update, samples: Samples | None = None) -> Tensor:
        """Return logits ``[n, outputs]`` of some samples, the verified ones by default, with an update on top."""
        known = self.run.samples if samples is None else samples
        with self.corrected(update) as model:
            # What a stage holds may leave less memory than the first pass had, for which the batches were chosen.
            run = partial(predict, model, known, indices, device=self.run.device)
            return with_smaller_batches(run, self.run.batch_size)[0]

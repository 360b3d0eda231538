"""A strength of its own for every layer, learned by gradient from the verified labels.

    W(α, g) = g · W P(α) + (1 − g) · W

for every layer, or group of layers of neighbouring depth where samples are few. log α and the gate g are learned from
cross-entropy on one half of the samples under moments of the other half, and swapped, starting at the α of `project`
for all and pulled back towards it. No eigendecomposition is needed: W P is smooth in log α, so it is computed exactly
at a few knots and interpolated between them while learning. What is learned is then applied exactly.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from verifix.capture.layer import Layer, kind_of, read_matrix, write_matrix
from verifix.model.gradients import gradients
from verifix.model.weights import Update
from verifix.projection import ALPHA_RANGE, Factors, prepare
from verifix.recipe.candidates import Listed
from verifix.recipe.context import Context
from verifix.recipe.stages.base import Stage
from verifix.recipe.stages.project import Project

KNOTS = tuple(math.log(10) * decade for decade in (-2, -4 / 3, -2 / 3, 0, 2 / 3))
"""Where W P is computed, in nats of log α from the single α. Layers that want less than no projection take the gate."""

STEPS = (8, 16)
"""Steps of Adam after which learning may stop."""

HALF_BATCH = 100
"""Samples of each half that a step looks at."""

SAMPLES_PER_GROUP = 50
"""Each group of layers has two numbers to learn; fewer samples than this per group fit noise."""

SPREAD_ALPHA, SPREAD_GATE = 2.0, 0.5
"""How far log α and g may well lie from where they start: standard deviations of the pull, as a Gaussian prior."""

RATE_ALPHA, RATE_GATE = 0.3, 0.1
"""Step sizes of Adam: it moves by about this much per step."""


Tables = dict[tuple[float, tuple[int, ...]], Mapping[Layer, Tensor]]
"""W and W P at the knots by layer, see `_Half`; by the first knot and the folds that the moments are of."""

Numbers = list[tuple[float, float]]
"""α and g of every layer."""


class Layerwise(Stage):
    """The projection with a strength and a gate per layer; refines `project`. Its own strength is the steps taken.

    Parameters
    ----------
    context
        The samples to fit on, and the weights as earlier stages left them.
    tables
        What other fitters have computed already, to be added to.

    Attributes
    ----------
    learned
        What has been learned, by steps; it is small, and stays when `release` lets go of the rest.
    learning
        What goes on with learning; None before it begins.
    factors
        What all α of a layer share, for the layers that have been fitted.
    """

    name = "layerwise"
    about = "A separate strength and gate for every layer."
    numbers = ("steps",)

    def __init__(self, context: Context, tables: Tables | None = None) -> None:
        super().__init__(context)
        self.tables: Tables = {} if tables is None else tables
        self.learned: dict[float, Numbers] = {}
        self.learning: Iterator[tuple[int, Numbers]] | None = None
        self.factors: dict[Layer, Factors] = {}

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Callable[[Context], Layerwise]]:
        """Lend what makes fitters that share tables: the same folds are a half of several contexts.

        Yields
        ------
        callable
            Context → fitter.
        """
        tables: Tables = {}
        try:
            yield partial(cls, tables=tables)
        finally:
            tables.clear()

    def obstacle(self) -> str:
        """Say what is missing: the single α that it starts from, or two halves."""
        if Project.name not in self.context.strengths:
            return "it refines the projection, but no projection was kept"
        if set(self.context.strengths) != {Project.name}:
            return "it must directly follow the projection, which it replaces"
        if len(self.context.run.members) < 3:
            return "it needs 3 folds or more"
        return ""

    def candidates(self) -> Listed:
        """Return numbers of steps, to stop early."""
        return Listed(STEPS)

    def fit(self, strength: float) -> Update:
        """Return g · W P(α) + (1 − g) · W with each layer's own α and g after so many steps.

        Parameters
        ----------
        strength
            Steps, one of `STEPS`.

        Returns
        -------
        Update
            New parameters, rounded once to the dtype they will have; see `Context.precision`.
        """
        context = self.context
        update: dict[str, Tensor] = {}
        for layer, (alpha, gate) in zip(context.layers, self.after(strength), strict=True):
            for name in layer.parameters:
                if name not in update:
                    update[name] = context.writable(name).copy_(context.original(name))
            weight = read_matrix(layer, context.original)
            if gate > 0:
                if layer not in self.factors:
                    self.factors[layer] = _factors(context, layer, context.folds, context.precision(layer))
                projected = self.factors[layer].project(alpha)
                weight = gate * projected + (1 - gate) * weight.to(projected.device)
            write_matrix(layer, update, weight)
        return update

    def after(self, steps: float) -> Numbers:
        """Return what is learned after so many steps, one of `STEPS`; what has been learned is not learned again."""
        if steps not in self.learned:
            self.learning = self.learning or _learn(self.context, self.tables)
            while steps not in self.learned:
                self.learned.update([next(self.learning)])
        return self.learned[steps]

    def release(self) -> None:
        """Let go of the factors and of the tables of a learning that has begun."""
        self.learning, self.factors = None, {}

    def layers(self, strength: float) -> Mapping[str, Mapping[str, float]]:
        """Return α and the gate of every layer."""
        learned = zip(self.context.layers, self.after(strength), strict=True)
        return {layer.parameter: {"alpha": alpha, "gate": gate} for layer, (alpha, gate) in learned}


@dataclass(frozen=True)
class _Half:
    """Samples whose loss counts, and, by layer, W and W P at the knots under moments of the other samples.

    The matrices are ``[1 + knots, groups, d_out, d_in]`` in float32: what is learned from them is a few numbers.
    """

    indices: Sequence[int]
    matrices: Mapping[Layer, Tensor]


def _learn(context: Context, tables: Tables) -> Iterator[tuple[int, Numbers]]:
    """Yield what is learned after each number of `STEPS`."""
    start = math.log(float(context.strengths[Project.name]))  # type: ignore[arg-type]
    low, high = (math.log(alpha) for alpha in ALPHA_RANGE)
    middle = min(max(start, low - KNOTS[0]), high - KNOTS[-1])
    knots = torch.tensor([middle + knot for knot in KNOTS], dtype=torch.float64)
    halves = [_half(context, tables, knots, *folds) for folds in _split(context)]
    count = len(context.layers)
    groups = min(count, max(1, len(context.indices) // SAMPLES_PER_GROUP))
    group_of = torch.arange(count) * groups // count
    numbers = torch.tensor([[start, 1.0]], dtype=torch.float64).repeat(groups, 1).requires_grad_()
    first = numbers.detach().clone()
    spread = torch.tensor([SPREAD_ALPHA, SPREAD_GATE], dtype=torch.float64)
    rates = torch.tensor([RATE_ALPHA, RATE_GATE], dtype=torch.float64)
    optimizer = torch.optim.Adam([numbers], lr=1.0, betas=(0.9, 0.95))
    batches = [_endless(half.indices, HALF_BATCH, context.run.seed) for half in halves]
    for step in range(1, max(STEPS) + 1):
        before = numbers.detach().clone()
        pull = ((before - first) / spread**2) / len(context.indices)
        numbers.grad = pull + sum(
            _gradient(context, half, next(batch), numbers, group_of, knots) / len(halves)
            for half, batch in zip(halves, batches, strict=True)
        )
        optimizer.step()
        with torch.no_grad():
            numbers.copy_(before + rates * (numbers - before))
            numbers[:, 0].clamp_(float(knots[0]), float(knots[-1]))
            numbers[:, 1].clamp_(0.0, 1.0)
        if step in STEPS:
            values = numbers.detach()[group_of].tolist()
            yield step, [(math.exp(log_alpha), gate) for log_alpha, gate in values]


def _split(context: Context) -> list[tuple[list[int], list[int]]]:
    """Pair the folds whose loss counts with those whose moments do: two halves, and swapped."""
    # Every other fold: that way most halves of one context are halves of another, too.
    even, odd = list(context.folds[0::2]), list(context.folds[1::2])
    return [(even, odd), (odd, even)]


def _halves(context: Context) -> list[list[int]]:
    return [context.samples_of(folds) for folds, _ in _split(context)]


def _half(context: Context, tables: Tables, knots: Tensor, of_loss: Sequence[int], of_moments: Sequence[int]) -> _Half:
    key = (float(knots[0]), tuple(of_moments))
    if key not in tables:
        tables[key] = {layer: _table(context, layer, knots, of_moments) for layer in context.layers}
    return _Half(context.samples_of(of_loss), tables[key])


def _table(context: Context, layer: Layer, knots: Tensor, folds: Sequence[int]) -> Tensor:
    factors = _factors(context, layer, folds, torch.float32)
    table = [factors.weight, *(factors.project(float(knot.exp())) for knot in knots)]
    return torch.stack([matrix.float() for matrix in table]).to(context.run.device)


def _factors(context: Context, layer: Layer, folds: Sequence[int], dtype: torch.dtype) -> Factors:
    moments = context.run.collected.moments(layer, folds, context.run.earlier)
    return prepare(read_matrix(layer, context.original), moments, dtype=dtype)


def _endless(indices: Sequence[int], size: int, seed: int) -> Iterator[list[int]]:
    """Yield batches of one size forever, reshuffled whenever the samples are used up."""
    generator = torch.Generator().manual_seed(seed)
    size = min(size, len(indices))
    for _ in itertools.count():
        order = torch.randperm(len(indices), generator=generator).tolist()
        for start in range(0, len(order) - size + 1, size):
            yield sorted(indices[i] for i in order[start : start + size])


def _gradient(
    context: Context, half: _Half, indices: Sequence[int], numbers: Tensor, group_of: Tensor, knots: Tensor
) -> Tensor:
    """Return the gradient ``[groups, 2]`` of the mean loss on a batch with respect to log α and g."""
    with torch.enable_grad():
        mixes = _mixes(numbers, knots)[group_of]  # [layers, 1 + knots]
    update: dict[str, Tensor] = {}
    for (layer, table), mix in zip(half.matrices.items(), mixes.detach(), strict=True):
        for name in layer.parameters:
            if name not in update:
                update[name] = context.original(name).detach().clone()
        write_matrix(layer, update, torch.tensordot(mix.to(table), table, 1).double())
    with context.corrected(update) as model:
        size, device = context.run.batch_size, context.run.device
        found = gradients(
            model, context.run.samples, indices, list(update), batch_size=size, device=device, tempered=True
        )
    slopes = []
    for layer, table in half.matrices.items():
        slope = _of_matrix(layer, found, update).to(table)
        slopes.append((table.flatten(1) @ slope.flatten()).double().cpu())
    with torch.enable_grad():
        (result,) = torch.autograd.grad((mixes * torch.stack(slopes)).sum(), numbers)
    return result


def _of_matrix(layer: Layer, found: Mapping[str, Tensor], update: Mapping[str, Tensor]) -> Tensor:
    """Turn gradients by a layer's parameters into the gradient by its matrix ``[groups, d_out, d_in]``."""
    gradient = found[layer.parameter]
    if layer.scale:  # with direction W and scale ‖W‖, as `write_matrix` leaves them, W moves both
        weight = update[layer.parameter]
        norms = torch.norm_except_dim(weight, 2, layer.scale_dim)
        gradient = gradient + found[layer.scale] * weight / norms.clamp_min(torch.finfo(norms.dtype).tiny)
    return kind_of(layer).matrix(layer.view(gradient), layer.groups)


def _mixes(numbers: Tensor, knots: Tensor) -> Tensor:
    """Return how W and W P at the knots are mixed, ``[groups, 1 + knots]``: cubic interpolation, times the gate."""
    log_alpha, gate = numbers[:, 0], numbers[:, 1:]
    first = (torch.searchsorted(knots, log_alpha.detach().contiguous()) - 2).clamp(0, len(knots) - 4)
    near = first[:, None] + torch.arange(4)
    points = knots[near]  # [groups, 4]
    weights = torch.zeros(len(numbers), len(knots), dtype=numbers.dtype)
    basis = [
        torch.stack([(log_alpha - points[:, j]) / (points[:, i] - points[:, j]) for j in range(4) if j != i]).prod(0)
        for i in range(4)
    ]
    weights = weights.scatter(1, near, torch.stack(basis, dim=1))
    return torch.cat([1 - gate, gate * weights], dim=1)

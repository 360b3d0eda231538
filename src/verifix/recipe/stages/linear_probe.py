"""A fresh linear head on an earlier feature layer, in place of all that follows it, without a change of architecture.

The last layers of a network, where wrong labels are memorised most easily, may do more harm than good. A linear
probe is fitted to what an earlier linear layer sees, and replaces the layers from there on. The network keeps its
layers: a chain of linear layers with ReLU, GELU or SiLU between them computes any linear map V exactly, because
z = f(z) − f(−z) for each of these f. The first layer is given V and −V, those between pass both on, and the last takes
the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from verifix.capture.layer import Bias, Layer, read_matrix, write_bias, write_matrix
from verifix.model.weights import Update
from verifix.recipe.candidates import Grid
from verifix.recipe.context import Context
from verifix.recipe.frozen import held_by
from verifix.recipe.stages.heads import (
    PULLS,
    TOLERANCE,
    Head,
    HeadStage,
    find_head,
    fit_logistic,
    seeing_one_row,
    watch,
)


class LinearProbe(HeadStage):
    """Minimise cross-entropy + λ / 2 · (s ‖V‖² + ‖c‖²) over V, c on the earliest features that allow it; strength λ."""

    name = "linear_probe"
    about = "A new last layer on the features, in place of the old one."
    numbers = ("pull",)
    trains = True

    @cached_property
    def site(self) -> _Site | None:
        """Where the probe goes; None if there is no head to replace."""
        return _find_site(self.context)

    @property
    def last(self) -> tuple[Layer, Bias | None, Tensor] | None:
        """The layer that takes the probe, if it is the last one; see `HeadStage`."""
        return (*self.site.chain[0], self.site.offset) if self.site and len(self.site.chain) == 1 else None

    def obstacle(self) -> str:
        """Say if there is no head to replace."""
        if self.site is None:
            return "no linear layer that may be corrected computes the logits"
        biases = [bias.parameter for _, bias in self.site.chain if bias is not None]
        return held_by(self.context, [*biases, *(name for layer, _ in self.site.chain for name in layer.parameters)])

    def candidates(self) -> Grid:
        """Return λ from 10⁻⁵ to 1."""
        return PULLS

    def fit(self, strength: float) -> Update:
        """Return the weights of the layers that compute the probe.

        Parameters
        ----------
        strength
            λ, above 0.

        Returns
        -------
        Update
            New weights and biases of the layers from the features on.
        """
        site = self.site
        assert site is not None  # noqa: S101 - `obstacle` has been asked
        zeros = torch.zeros(site.outputs, site.features.shape[1], dtype=torch.float64)
        weight, bias = fit_logistic(
            site.features, self.context.labels, zeros, strength, free_bias=site.free_bias, offset=site.offset
        )
        return _embedded(self.context, site.chain, weight, bias - site.offset)

    def layers(self, strength: float) -> Mapping[str, Mapping[str, float]]:
        """Return λ for the layers that the probe takes."""
        return {} if self.site is None else {layer.parameter: {"pull": strength} for layer, _ in self.site.chain}


@dataclass(frozen=True)
class _Site:
    """Where a probe goes.

    Attributes
    ----------
    chain
        The layers it takes, first to last, and their biases.
    features
        What the first of them sees, ``[n, d]``.
    outputs
        Number of logits.
    offset
        What the network adds to the products besides a bias that is fitted, ``[outputs]``.
    """

    chain: Sequence[tuple[Layer, Bias | None]]
    features: Tensor
    outputs: int
    offset: Tensor

    @property
    def free_bias(self) -> bool:
        """Whether the first layer has a bias to fit."""
        return self.chain[0][1] is not None


def _find_site(context: Context) -> _Site | None:
    """Find the earliest features from which the remaining layers can be made to compute a linear map."""
    head = find_head(context)
    if head is None:
        return None
    chain = seeing_one_row(context)
    chain = [*chain[: chain.index(head.layer)], head.layer] if head.layer in chain else [head.layer]
    if len(chain) == 1:
        return _of_head(head)
    _, seen = watch(context, chain, context.indices)
    biases = context.run.collected.biases
    for start in range(len(chain) - 1):
        site = _Site(
            [(layer, biases.get(layer)) for layer in chain[start:]],
            seen[chain[start]][:, 0],
            len(head.offset),
            torch.zeros_like(head.offset),
        )
        if _computes_any_map(context, site):
            return site
    return _of_head(head)


def _of_head(head: Head) -> _Site:
    offset = head.beyond if head.bias else head.offset
    return _Site([(head.layer, head.bias)], head.features, len(head.offset), offset)


def _computes_any_map(context: Context, site: _Site) -> bool:
    """Try a random map, and see whether the network computes it."""
    if any(read_matrix(layer, context.original).shape[1] < 2 * site.outputs for layer, _ in site.chain[:-1]):
        return False
    generator = torch.Generator().manual_seed(context.run.seed)
    weight = torch.randn(site.outputs, site.features.shape[1], generator=generator, dtype=torch.float64)
    weight /= float(site.features.norm(dim=1).mean()) or 1.0
    bias = torch.randn(site.outputs, generator=generator, dtype=torch.float64) * site.free_bias
    expected = site.features @ weight.mT + bias
    found = context.predict(context.indices, _embedded(context, site.chain, weight, bias))
    return float((found - expected).abs().max()) <= TOLERANCE * float(expected.abs().max())


def _embedded(context: Context, chain: Sequence[tuple[Layer, Bias | None]], weight: Tensor, bias: Tensor) -> Update:
    """Return the update that makes a chain of layers compute features · Vᵀ + c."""
    update: dict[str, Tensor] = {}
    last, count = len(chain) - 1, len(weight)
    for i, (layer, own_bias) in enumerate(chain):
        shape = read_matrix(layer, context.original).shape[1:]
        first = weight if i == 0 else torch.cat([torch.eye(count), -torch.eye(count)], dim=1).double()
        rows = first if i == last else torch.cat([first, -first])
        matrix = torch.zeros(1, *shape, dtype=torch.float64)
        matrix[0, : len(rows), : rows.shape[1]] = rows
        for name in (*layer.parameters, *([own_bias.parameter] if own_bias else [])):
            if name not in update:
                update[name] = context.writable(name)
        write_matrix(layer, update, matrix.to(context.run.device))
        if own_bias is not None:
            added = torch.zeros(shape[0], dtype=torch.float64)
            added[: len(rows)] = (bias if i == last else torch.cat([bias, -bias])) if i == 0 else 0.0
            write_bias(own_bias, update, added)
    return update

"""The paper that this library builds on, as published: Verifix / SAP (arXiv 2403.08618).

For every layer the singular value decomposition of its input rows X, in float32, of at most 50,000 rows drawn at
random; r_i = σ_i² / Σ_j σ_j², λ_i = α r_i / ((α − 1) r_i + 1), and W ← W U diag(λ) Uᵀ, with one α for all layers and
all rows from one pass of the uncorrected network. `Published` chooses α as all methods here choose their settings, on
the folds. `PublishedOracle` chooses it as the reference does: by the accuracy on the training samples with their true
labels, which no user has. A layer that sees nothing but zeros keeps its weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.methods.base import Case, Rival, predictor
from verifix.capture.interceptor import intercepting
from verifix.capture.layer import Layer, read_matrix, write_matrix
from verifix.capture.selection import Selection
from verifix.losses import correct_or_not
from verifix.model.run import run_model, to_device
from verifix.model.sources import Batch
from verifix.model.weights import Update
from verifix.projection import importance
from verifix.recipe.candidates import Listed
from verifix.recipe.context import Context

ALPHAS = tuple(float(alpha) for alpha in np.geomspace(1e4, 1e6, 9))

ROWS = 50_000
"""Rows of a layer that are decomposed, at most."""

SCORED = 10_000
"""Training samples that the oracle scores each α on, at most: its own standard error there is half a point or less."""


@dataclass(frozen=True)
class Spectrum:
    """What all α of a layer share.

    Attributes
    ----------
    weight
        W, ``[groups, d_out, d_in]``, float32.
    r
        r_i, ``[groups, k]``, falling; all 0 for a group without rows other than 0.
    directions
        Uᵀ, ``[groups, k, d_in]``.
    """

    weight: Tensor
    r: Tensor
    directions: Tensor

    def project(self, alpha: float) -> Tensor:
        """Return W U diag(λ) Uᵀ ``[groups, d_out, d_in]``."""
        scaled = importance(self.r, alpha)[:, :, None] * self.directions
        new = self.weight @ self.directions.mT @ scaled
        return torch.where(self.r.any(dim=1)[:, None, None], new, self.weight)


class Published(Rival):
    """The paper's projection by plain decompositions; its strength is (α,), chosen on the folds."""

    name = "published"
    alphas = ALPHAS
    rows = ROWS

    def __init__(self, case: Case, context: Context) -> None:
        super().__init__(case, context)
        self.spectra: dict[Layer, Spectrum] = {}

    def release(self) -> None:
        """Let go of the decompositions."""
        self.spectra = {}

    def obstacle(self) -> str:
        """Say if there is no layer to project."""
        return "" if self.context.layers else "no layer can be corrected"

    def candidates(self) -> Listed:
        """Return α from 10⁴ to 10⁶."""
        return Listed(tuple((alpha,) for alpha in self.alphas))

    def fit(self, strength: tuple[float, ...]) -> Update:
        """Return W U diag(λ) Uᵀ for every layer.

        Parameters
        ----------
        strength
            α.

        Returns
        -------
        Update
            New weights.
        """
        return self._projected(strength[0])

    def _projected(self, alpha: float) -> Update:
        context, update = self.context, dict[str, Tensor]()
        self.spectra = self.spectra or spectra(context, self.rows)
        for layer, spectrum in self.spectra.items():
            for name in layer.parameters:
                if name not in update:
                    update[name] = context.writable(name)
            write_matrix(layer, update, spectrum.project(alpha).double())
        return update


class PublishedOracle(Published):
    """The same with the α that is best on the training samples' true labels; there is nothing left to set.

    Parameters
    ----------
    case
        The network and what there is to correct it with.
    """

    name = "published_oracle"

    def candidates(self) -> Listed:
        """Return one empty setting."""
        return Listed(((),))

    def fit(self, strength: tuple[float, ...]) -> Update:  # noqa: ARG002 - there is none
        """Return the projection that gets the most training samples right; of equals that of the least α.

        Parameters
        ----------
        strength
            Nothing.

        Returns
        -------
        Update
            New weights.
        """
        self.settled = max(self.alphas, key=lambda alpha: self._right(self._projected(alpha)))
        return self._projected(self.settled)

    def _right(self, update: Update) -> float:
        """Return the share of training samples that new weights get right."""
        count = len(self.case.training)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(self.context.run.seed))
        indices = order[:SCORED].tolist()
        logits = predictor(self.context.run.model, update)(self.case.training, indices)
        return float(correct_or_not(logits, self.case.truth[indices]).mean())


def spectra(context: Context, most: int = ROWS) -> dict[Layer, Spectrum]:
    """Decompose what each layer of a context's model sees.

    Parameters
    ----------
    context
        The samples, and the weights.
    most
        Rows of a layer, at most.

    Returns
    -------
    dict
        By layer.
    """
    drawn = drawn_rows(context, most)
    found = {}
    for layer in context.layers:
        weight = read_matrix(layer, context.parameter).float()
        _, singular, directions = torch.linalg.svd(drawn.pop(layer).rows, full_matrices=False)
        energy = singular.square().sum(dim=1, keepdim=True)
        r = singular.square() / torch.where(energy > 0, energy, torch.ones_like(energy))
        found[layer] = Spectrum(weight, r, directions)
    return found


class Draw:
    """An even draw without replacement from rows that come in chunks: those with the smallest of random numbers.

    Parameters
    ----------
    most
        Rows to keep.
    seed
        Seed of the draw.
    """

    def __init__(self, most: int, seed: int) -> None:
        self.most = most
        self.generator = torch.Generator().manual_seed(seed)
        self.keys = torch.empty(0, dtype=torch.float64)
        self.rows = torch.empty(0)

    def add(self, rows: Tensor) -> None:
        """Take in a chunk ``[groups, n, d_in]``, which is copied."""
        keys = torch.rand(rows.shape[1], generator=self.generator, dtype=torch.float64)
        if len(self.keys) == self.most:  # most of what comes late is out, and need not be copied
            near = keys < self.keys.max()
            keys, rows = keys[near], rows[:, near.to(rows.device)]
        fresh = rows.float()
        self.rows = torch.cat([self.rows, fresh], dim=1) if len(self.keys) else fresh.clone()
        self.keys = torch.cat([self.keys, keys])
        if len(self.keys) > self.most:
            kept = self.keys.topk(self.most, largest=False).indices.sort().values
            self.keys, self.rows = self.keys[kept], self.rows[:, kept.to(rows.device)]


def drawn_rows(context: Context, most: int) -> dict[Layer, Draw]:
    """Run a context's samples once, and draw rows of every layer."""
    drawn = {layer: Draw(most, context.run.seed) for layer in context.layers}
    counting = False

    def sink(layer: Layer, rows: Tensor) -> None:
        if counting:
            drawn[layer].add(rows.detach())

    selection = Selection(only=frozenset(drawn))
    with context.corrected() as model, intercepting(model, sink, selection, padding=context.run.padding) as census:

        def run(batch: Batch) -> None:
            census.begin(len(batch.labels))
            run_model(model, to_device(batch.inputs, context.run.device), context.run.samples.forward)

        run(next(context.run.samples.batches(context.indices, 1)))  # shows what grows with the number of samples
        counting = True
        for batch in context.run.samples.batches(context.indices, context.run.batch_size):
            run(batch)
    return drawn

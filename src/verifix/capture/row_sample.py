"""Moments from a random part of the rows, and how far they are then off."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from verifix.capture.layer import Layer
from verifix.moments import Moments


@dataclass
class _Drawn:
    """What has been drawn of a layer's rows: the generator, rows drawn and seen, and Σ ‖x‖⁴ of those drawn."""

    generator: torch.Generator
    rows: int = 0
    seen: int = 0
    fourth: Tensor | float = 0.0


class RowSample:
    """Draw rows at random, so that a layer has about so many in the end, in a way that does not depend on others.

    Every draw of m among n rows is scaled by √(n / m): its XᵀX then is, on average, that of all rows.

    Parameters
    ----------
    most
        Rows wanted of a layer, over all samples.
    expected
        Rows that each layer will see.
    seed
        Seed of the draw.
    """

    def __init__(self, most: int, expected: dict[Layer, float], seed: int) -> None:
        self._shares = {layer: min(1.0, most / rows) for layer, rows in expected.items()}
        self.wanted, self._seed = most, seed
        self._drawn: dict[Layer, _Drawn] = {}

    def thins(self, layer: Layer) -> bool:
        """Tell whether rows of a layer are left out."""
        return self._shares.get(layer, 1.0) < 1

    def draw(self, layer: Layer, rows: Tensor) -> Tensor:
        """Return some of the rows ``[groups, n, d]``, scaled; one at least."""
        if not self.thins(layer) or not rows.shape[1]:
            return rows
        if layer not in self._drawn:
            key = hashlib.sha256(f"{self._seed} {layer}".encode()).digest()
            self._drawn[layer] = _Drawn(torch.Generator().manual_seed(int.from_bytes(key[:7], "big")))
        drawn, n = self._drawn[layer], rows.shape[1]
        wanted = n * self._shares[layer]
        count = min(n, max(1, int(wanted + torch.rand(1, generator=drawn.generator).item())))
        picked = torch.randperm(n, generator=drawn.generator)[:count].sort().values
        rows = rows[:, picked.to(rows.device)] * math.sqrt(n / count)
        drawn.rows, drawn.seen = drawn.rows + count, drawn.seen + n
        drawn.fourth += rows.double().square().sum(dim=2).square().sum() * (count / n)  # n / m · ‖x‖⁴ of the unscaled
        return rows

    def error(self, layer: Layer, moments: Moments) -> float:
        """Estimate how far XᵀX of the drawn rows is off.

        A draw of M among N rows without replacement has E‖X̂ᵀX̂ − XᵀX‖²_F = (1 − M / N) / M · (N Σ‖x‖⁴ − ‖XᵀX‖²_F),
        the variance of a mean times N², for the matrices x xᵀ.

        Parameters
        ----------
        layer
            The layer.
        moments
            Its moments over all samples.

        Returns
        -------
        float
            The standard error in the Frobenius norm, over ‖XᵀX‖_F; 0 where no rows were left out.
        """
        drawn, rank = self._drawn.get(layer), moments.effective_rank
        if drawn is None or not bool((rank > 0).any()):
            return 0.0
        alive = rank > 0
        size = float((moments.trace[alive].square() / rank[alive]).sum())
        spread = max(0.0, drawn.seen * float(drawn.fourth) / size - 1)
        return math.sqrt((1 - drawn.rows / drawn.seen) / drawn.rows * spread)

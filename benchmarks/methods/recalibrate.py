"""BatchNorm's running statistics mixed with those of the verified samples.

Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020 (arXiv
2006.16971). The new statistics are those of forward passes in train mode, in which each BatchNorm normalises by its
batch, so that later layers see what they would see.
"""

from __future__ import annotations

from benchmarks.methods.base import Rival, nearby
from verifix.model.weights import Update
from verifix.recipe.candidates import Listed
from verifix.recipe.context import Context
from verifix.recipe.stages.recalibrate import Recalibrate

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)


class Recalibration(Rival):
    """(1 − m) · old + m · new for every running mean and variance; its setting is m."""

    name = "recalibration"

    def obstacle(self, context: Context) -> str:
        """Say if there is no BatchNorm that keeps statistics."""
        return Recalibrate().obstacle(context)

    def candidates(self, context: Context) -> Listed:  # noqa: ARG002 - the same for every network
        """Return the shares of the new statistics."""
        return Listed(tuple((share,) for share in SHARES))

    def neighbours(self, context: Context, best: tuple[float]) -> list[tuple[float]]:  # noqa: ARG002
        """Return half and twice as much."""
        return [(near,) for near in nearby(best[0], 2, 1e-3, 1.0)]

    def fit(self, context: Context, strength: tuple[float]) -> Update:
        """Return the mixed statistics.

        Parameters
        ----------
        context
            Where to take samples and weights from.
        strength
            m, from 0 to 1.

        Returns
        -------
        Update
            New buffers.
        """
        return Recalibrate().fit(context, strength[0])

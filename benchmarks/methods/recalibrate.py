"""BatchNorm's running statistics mixed with those of the verified samples.

Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", NeurIPS 2020 (arXiv
2006.16971). The new statistics are those of forward passes in train mode, in which each BatchNorm normalises by its
batch, so that later layers see what they would see.
"""

from __future__ import annotations

from benchmarks.methods.base import Case, Rival, nearby
from verifix.model.weights import Update
from verifix.recipe.candidates import Listed
from verifix.recipe.context import Context
from verifix.recipe.stages.recalibrate import Recalibrate

SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)


class Recalibration(Rival):
    """(1 − m) · old + m · new for every running mean and variance; its setting is m."""

    name = "recalibration"

    def __init__(self, case: Case, context: Context) -> None:
        super().__init__(case, context)
        self.stage = Recalibrate(context)

    def release(self) -> None:
        """Let go of the statistics."""
        self.stage.release()

    def obstacle(self) -> str:
        """Say if there is no BatchNorm that keeps statistics."""
        return self.stage.obstacle()

    def candidates(self) -> Listed:
        """Return the shares of the new statistics."""
        return Listed(tuple((share,) for share in SHARES))

    def neighbours(self, best: tuple[float]) -> list[tuple[float]]:
        """Return half and twice as much."""
        return [(near,) for near in nearby(best[0], 2, 1e-3, 1.0)]

    def fit(self, strength: tuple[float]) -> Update:
        """Return the mixed statistics.

        Parameters
        ----------
        strength
            m, from 0 to 1.

        Returns
        -------
        Update
            New buffers.
        """
        return self.stage.fit(strength[0])

"""Last-layer retraining: the head fitted from scratch to the verified labels, as if the rest of the network were right.

Kirichenko, Izmailov and Wilson, "Last layer re-training is sufficient for robustness to spurious correlations", ICLR
2023 (arXiv 2204.02937). The penalty is L2 here; the paper's groups, which it balances, are not known for wrong labels.
"""

from __future__ import annotations

import torch

from benchmarks.methods.base import HALF_A_DECADE, nearby
from benchmarks.methods.features import OnHead
from verifix.model.weights import Update
from verifix.recipe.candidates import Listed
from verifix.recipe.stages.heads import fit_logistic
from verifix.recipe.stages.refit import written

STRENGTHS = tuple(10.0**exponent for exponent in range(-7, 1))
"""λ from 10⁻⁷ to 1, relative to the features' scale."""


class HeadRefit(OnHead):
    """Multinomial logistic regression on the features with an L2 penalty; its setting is λ."""

    name = "head_refit"

    def candidates(self) -> Listed:
        """Return the strengths of the penalty."""
        return Listed(tuple((strength,) for strength in STRENGTHS))

    def neighbours(self, best: tuple[float]) -> list[tuple[float]]:
        """Return half a decade more and less."""
        return [(near,) for near in nearby(best[0], HALF_A_DECADE, 1e-12)]

    def fit(self, strength: tuple[float]) -> Update:
        """Return the head that minimises the mean cross-entropy + λ / 2 · (s ‖W‖² + ‖b‖²), s the mean of ‖x‖².

        Parameters
        ----------
        strength
            λ.

        Returns
        -------
        Update
            New weight, and bias if the head has one.
        """
        head = self.found
        zeros = torch.zeros(len(head.offset), head.features.shape[1], dtype=torch.float64)
        offset = head.beyond if head.bias else head.offset
        fitted = fit_logistic(
            head.features, self.context.labels, zeros, strength[0], free_bias=head.bias is not None, offset=offset
        )
        return written(self.context, head, *fitted)

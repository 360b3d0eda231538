"""What could be had if every label were known: the network trained anew on the true labels of all training samples."""

from __future__ import annotations

import torch

from benchmarks.methods.base import Predictor, Rival, predictor
from verifix.recipe.candidates import Listed


class Retrain(Rival):
    """A training on the true labels; an upper bound, as nobody has these labels."""

    name = "retrain"

    def candidates(self) -> Listed:
        """Return one setting."""
        return Listed(((),))

    def fit(self, strength: tuple[float, ...]) -> Predictor:  # noqa: ARG002
        """Return the new network's logits.

        Parameters
        ----------
        strength
            Empty.

        Returns
        -------
        callable
            (samples, indices) → logits.
        """
        with torch.enable_grad():
            return predictor(self.case.train(self.case.truth), {})

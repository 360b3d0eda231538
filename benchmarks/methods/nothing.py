"""The network as it is."""

from __future__ import annotations

from benchmarks.methods.base import Rival
from verifix.model.weights import Update
from verifix.recipe.candidates import Listed


class Nothing(Rival):
    """No change."""

    name = "nothing"

    def candidates(self) -> Listed:
        """Return one setting."""
        return Listed(((),))

    def fit(self, strength: tuple[float, ...]) -> Update:  # noqa: ARG002
        """Return no new weights."""
        return {}

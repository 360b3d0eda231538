"""The network as it is."""

from __future__ import annotations

from benchmarks.methods.base import Rival
from verifix.model.weights import Update
from verifix.recipe.candidates import Listed
from verifix.recipe.context import Context


class Nothing(Rival):
    """No change."""

    name = "nothing"

    def candidates(self, context: Context) -> Listed:  # noqa: ARG002 - there is nothing to set
        """Return one setting."""
        return Listed(((),))

    def fit(self, context: Context, strength: tuple[float, ...]) -> Update:  # noqa: ARG002
        """Return no new weights."""
        return {}

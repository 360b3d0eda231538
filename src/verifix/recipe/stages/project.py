"""The paper's stage: every layer's weight times P(α), with one α for all layers. It uses no labels."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from verifix.capture.layer import Layer, read_matrix, write_matrix
from verifix.model.weights import Update
from verifix.projection import Factors, check_alpha, prepare
from verifix.recipe.candidates import Grid
from verifix.recipe.context import Context
from verifix.recipe.stages.base import Cost


class Project:
    """Scaled activation projection with strength α (Verifix, arXiv 2403.08618; see `verifix.projection`)."""

    name = "project"

    def obstacle(self, context: Context) -> str:
        """Nothing but layers could be missing; labels it does not use."""
        return "" if context.layers else "no layer can be corrected"

    def candidates(self, context: Context) -> Grid:  # noqa: ARG002 - the same for every network
        """Return α from 10 to 10⁶: below lies almost nothing of the network, above almost all of the projector."""
        return Grid(10, 1e6)

    def fit(self, context: Context, strength: float) -> Update:
        """Return W P(α) for every layer, from one pass of the old weights.

        Parameters
        ----------
        context
            Where to take moments and weights from.
        strength
            α, above 0.

        Returns
        -------
        Update
            New parameters: computed in float64, rounded once to the dtype they will have.
        """
        alpha = check_alpha(strength)
        update: dict[str, Tensor] = {}
        for layer, factors in context.remember("factors", lambda: self._prepare(context)).items():
            for name in layer.parameters:
                if name not in update:
                    update[name] = context.writable(name)
            write_matrix(layer, update, factors.project(alpha))
        return update

    def layers(self, context: Context, strength: float) -> Mapping[str, Mapping[str, float]]:
        """Return α for every layer."""
        return {layer.parameter: {"alpha": strength} for layer in context.layers}

    def _prepare(self, context: Context) -> dict[Layer, Factors]:
        return {
            layer: prepare(read_matrix(layer, context.parameter), context.moments(layer)) for layer in context.layers
        }

    def cost(self, context: Context) -> Cost:
        """Estimate the primal form's multiplications; the dual is chosen only where it takes fewer."""
        first = again = 0.0
        nbytes = 0
        for layer in context.layers:
            groups, outputs, width = read_matrix(layer, context.parameter).shape
            product = 2 * groups * outputs * width**2
            again += groups * width**3 / 3 + 2 * product
            first += product
            nbytes += 8 * groups * (width**2 + 2 * outputs * width)
        return Cost(first + again, again, nbytes)

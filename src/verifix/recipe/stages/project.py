"""The paper's stage: every layer's weight times P(α), with one α for all layers. It uses no labels."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping

from torch import Tensor

from verifix.capture.layer import Layer, read_matrix, write_matrix
from verifix.model.weights import Update
from verifix.moments import Moments
from verifix.options import CorrectOptions
from verifix.projection import Factors, check_alpha, prepare
from verifix.recipe.candidates import Grid
from verifix.recipe.context import Context
from verifix.recipe.stages.base import Stage


class Project(Stage):
    """Scaled activation projection with strength α (Verifix, arXiv 2403.08618; see `verifix.projection`).

    Attributes
    ----------
    factors
        What all α of a layer share; empty until the first one is fitted.
    """

    name = "project"
    about = (
        "The paper's projection: shrinks directions that the samples never excite, with one strength for all layers."
    )
    numbers = ("alpha",)

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.factors: Mapping[Layer, Factors] = {}

    @classmethod
    def given(cls, options: CorrectOptions) -> float | None:
        """Return α if it is a number, unless unlabelled inputs are there for the recipe "auto" to use with it."""
        instead = options.beside and options.recipe == "auto"
        return None if options.alpha == "auto" or instead else float(options.alpha)

    def obstacle(self) -> str:
        """Nothing but layers could be missing; labels it does not use."""
        return "" if self.context.layers else "no layer can be corrected"

    def candidates(self) -> Grid:
        """Return α from 10 to 10⁶: below lies almost nothing of the network, above almost all of the projector."""
        return Grid(10, 1e6)

    def fit(self, strength: float) -> Update:
        """Return W P(α) for every layer, from one pass of the old weights.

        Parameters
        ----------
        strength
            α, above 0.

        Returns
        -------
        Update
            New parameters, rounded once to the dtype they will have; see `Context.precision`.
        """
        alpha = check_alpha(strength)
        update: dict[str, Tensor] = {}
        self.factors = self.factors or self._prepared()
        for layer, factors in self.factors.items():
            for name in layer.parameters:
                if name not in update:
                    update[name] = self.context.writable(name)
            write_matrix(layer, update, factors.project(alpha))
        return update

    def layers(self, strength: float) -> Mapping[str, Mapping[str, float]]:
        """Return α for every layer."""
        return {layer.parameter: {"alpha": strength} for layer in self.context.layers}

    def release(self) -> None:
        """Let go of the factors."""
        self.factors = {}

    def moments(self) -> Callable[[Layer], Moments]:
        """Return what gives the moments of a layer to project by."""
        return self.context.moments()

    def _prepared(self) -> Mapping[Layer, Factors]:
        context, moments = self.context, self.moments()

        def made(layer: Layer) -> Factors:
            return prepare(read_matrix(layer, context.parameter), moments(layer), dtype=context.precision(layer))

        return context.run.by_layer(context.layers, made)


class ProjectBeside(Project):
    """`Project` by further moments of the original weights, beside those of the context's samples."""

    @abstractmethod
    def missing(self) -> str:
        """Say what further moments lack; empty if they are there."""

    @abstractmethod
    def further(self, layer: Layer) -> Moments | None:
        """Return the further moments of a layer; None if what they are of does not reach it."""

    def obstacle(self) -> str:
        """Say if there are no further moments, or if they are not those of the weights as they are now."""
        if missing := self.missing():
            return missing
        if self.context.update:
            return "an earlier stage has changed weights, and it projects the original ones; name it first"
        return super().obstacle()

    def moments(self) -> Callable[[Layer], Moments]:
        """Return what adds the further moments of a layer to those over the context's samples."""
        own = super().moments()

        def summed(layer: Layer) -> Moments:
            further = self.further(layer)
            return own(layer) if further is None else own(layer) + further

        return summed

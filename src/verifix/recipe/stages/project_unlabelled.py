"""The paper's projection by the moments of verified samples and unlabelled inputs together. It uses no labels."""

from __future__ import annotations

from collections.abc import Callable

from verifix.capture.layer import Layer
from verifix.moments import Moments
from verifix.options import CorrectOptions
from verifix.recipe.stages.project import Project


class ProjectUnlabelled(Project):
    """`Project`, whose moments are those of the samples to fit on and of all unlabelled inputs: every row counts alike.

    None of the unlabelled inputs is a verified sample, so that samples that are held out stay so.
    """

    name = "project_unlabelled"
    about = "The paper's projection, with unlabelled inputs beside the verified samples."
    unlabelled = True

    @classmethod
    def given(cls, options: CorrectOptions) -> float | None:
        """Return α if it is a number, and a recipe names this stage, or is "auto" with inputs for it to use."""
        unused = options.recipe == "auto" and not options.beside
        return None if options.alpha == "auto" or unused else float(options.alpha)

    def obstacle(self) -> str:
        """Say if there are no such inputs, or if their moments are not those of the weights as they are now."""
        if self.context.run.unlabelled is None:
            return "no unlabelled inputs were given"
        if self.context.update:
            return "an earlier stage has changed weights, and it projects the original ones; name it first"
        return super().obstacle()

    def moments(self) -> Callable[[Layer], Moments]:
        """Return what adds the moments of a layer over the unlabelled inputs to those over the context's samples."""
        own, beside = super().moments(), self.context.run.beside

        def summed(layer: Layer) -> Moments:
            return own(layer) + beside[layer] if layer in beside else own(layer)

        return summed

"""The paper's projection by the moments of verified samples and unlabelled inputs together. It uses no labels."""

from __future__ import annotations

from verifix.capture.layer import Layer
from verifix.moments import Moments
from verifix.options import CorrectOptions
from verifix.recipe.stages.project import ProjectBeside


class ProjectUnlabelled(ProjectBeside):
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

    def missing(self) -> str:
        """Say if there are no such inputs."""
        return "no unlabelled inputs were given" if self.context.run.unlabelled is None else ""

    def further(self, layer: Layer) -> Moments | None:
        """Return the moments of a layer over the unlabelled inputs."""
        return self.context.run.beside.get(layer)

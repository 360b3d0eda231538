"""The paper's projection by the moments of verified samples and of jittered copies of them. It uses no labels."""

from __future__ import annotations

from verifix.capture.layer import Layer
from verifix.moments import Moments
from verifix.options import CorrectOptions
from verifix.recipe.stages.project import ProjectBeside


class ProjectJittered(ProjectBeside):
    """`Project`, whose moments are those of the samples to fit on and of copies of these, changed at random.

    Few samples excite few directions, and unseen samples of the same kind others that lie near: the copies say which.
    See `verifix.recipe.stages.jitter` for the changes, and `verifix.recipe.copies` for how many copies there are.
    """

    name = "project_jittered"
    about = "The paper's projection, with jittered copies of the verified samples beside them."

    @classmethod
    def given(cls, options: CorrectOptions) -> float | None:
        """Return α if it is a number, and a recipe names this stage."""
        return None if options.alpha == "auto" or options.recipe == "auto" else float(options.alpha)

    def missing(self) -> str:
        """Say if there are no copies."""
        none = self.context.run.copies is None
        return "inputs cannot be jittered, or samples are so many that copies would add nothing" if none else ""

    def further(self, layer: Layer) -> Moments | None:
        """Return the moments of a layer over the copies of the context's samples."""
        copies, folds = self.context.run.copies, self.context.folds
        if copies is None or not any(layer in copies.folds[fold] for fold in folds):
            return None
        return copies.moments(layer, folds, {})

"""The paper's projection by the moments of verified samples and of jittered copies of them. It uses no labels."""

from __future__ import annotations

from collections.abc import Callable

from verifix.capture.layer import Layer
from verifix.moments import Moments
from verifix.options import CorrectOptions
from verifix.recipe.stages.project import Project


class ProjectJittered(Project):
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

    def obstacle(self) -> str:
        """Say if there are no copies, or if their moments are not those of the weights as they are now."""
        if self.context.run.copies is None:
            return "inputs cannot be jittered, or samples are so many that copies would add nothing"
        if self.context.update:
            return "an earlier stage has changed weights, and it projects the original ones; name it first"
        return super().obstacle()

    def moments(self) -> Callable[[Layer], Moments]:
        """Return what adds the moments of a layer over the copies to those over the context's samples."""
        own, copies, folds = super().moments(), self.context.run.copies, self.context.folds
        assert copies is not None  # noqa: S101 - `obstacle` has been asked
        return lambda layer: own(layer) + copies.moments(layer, folds, {})

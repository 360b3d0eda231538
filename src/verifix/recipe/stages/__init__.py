"""The steps of a correction. Each is one file with one class that follows `Stage`; `STAGES` lists them in order."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from verifix.errors import UsageError
from verifix.recipe.context import Context
from verifix.recipe.stages.base import Cost, Stage
from verifix.recipe.stages.finetune import FineTune
from verifix.recipe.stages.layerwise import Layerwise
from verifix.recipe.stages.linear_probe import LinearProbe
from verifix.recipe.stages.project import Project
from verifix.recipe.stages.recalibrate import Recalibrate
from verifix.recipe.stages.refit import Refit

STAGES: Mapping[str, Callable[[], Stage]] = {
    stage.name: stage for stage in (Project, Layerwise, Recalibrate, Refit, LinearProbe, FineTune)
}
"""Every stage by name, in the order in which a recipe runs them."""

RECIPES: Mapping[str, tuple[str, ...]] = {"verifix": ("project",), "auto": tuple(STAGES)}
"""Named recipes: which stages, in which order."""


def stages_of(recipe: str) -> list[Stage]:
    """Return the stages of a recipe, in order.

    Parameters
    ----------
    recipe
        A name from `RECIPES`, or stage names joined by commas.

    Returns
    -------
    list of Stage
        Fresh stages.

    Raises
    ------
    UsageError
        If a name is unknown, or there twice.
    """
    names = RECIPES.get(recipe) or tuple(str(recipe).split(","))
    for name in names:
        if name not in STAGES or names.count(name) > 1:
            raise UsageError(
                f"recipe is {recipe!r}; it must be {' or '.join(map(repr, RECIPES))}, or stages among "
                f"{', '.join(STAGES)}, each once, joined by commas"
            )
    return [STAGES[name]() for name in names]


__all__ = ["RECIPES", "STAGES", "Context", "Cost", "Project", "Stage", "stages_of"]

"""Which stages a correction runs, and whether the samples have anything to choose."""

from __future__ import annotations

from verifix.errors import UsageError
from verifix.options import CorrectOptions
from verifix.recipe.stages import STAGES, Stage, recipes


def stages_of(recipe: str) -> list[type[Stage]]:
    """Return the stages of a recipe, in order.

    Parameters
    ----------
    recipe
        A name from `recipes`, or stage names joined by commas.

    Returns
    -------
    list of type
        The stages.

    Raises
    ------
    UsageError
        If a name is unknown, or there twice.
    """
    known = recipes()
    names = known.get(recipe) or tuple(str(recipe).split(","))
    for name in names:
        if name not in STAGES or names.count(name) > 1:
            raise UsageError(
                f"recipe is {recipe!r}; it must be {' or '.join(map(repr, known))}, or stages among "
                f"{', '.join(STAGES)}, each once, joined by commas"
            )
    return [STAGES[name] for name in names]


def planned(options: CorrectOptions) -> list[type[Stage]]:
    """Return the stages to run: with the recipe "auto" a stage whose strength is given runs alone."""
    fixed = [stage for stage in STAGES.values() if stage.given(options) is not None]
    return fixed if fixed and options.recipe == "auto" else stages_of(options.recipe)


def is_choosing(options: CorrectOptions) -> bool:
    """Tell whether any stage's strength is left for the verified samples to choose."""
    return any(stage.given(options) is None for stage in planned(options))


def minimum_samples(options: CorrectOptions) -> int:
    """Return how many verified samples these settings need: few leave nothing to choose from."""
    return max(50, 2 * options.folds) if is_choosing(options) else 2

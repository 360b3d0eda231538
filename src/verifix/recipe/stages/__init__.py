"""The steps of a correction. Each is one file with one class built on `Stage`; `STAGES` lists them in order.

Users add stages of their own with :func:`register_stage`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from typing import Any

from verifix.errors import UsageError
from verifix.recipe.context import Context
from verifix.recipe.stages.base import Stage
from verifix.recipe.stages.distill import Distill
from verifix.recipe.stages.finetune import FineTune
from verifix.recipe.stages.layerwise import Layerwise
from verifix.recipe.stages.project import Project
from verifix.recipe.stages.project_jittered import ProjectJittered
from verifix.recipe.stages.project_unlabelled import ProjectUnlabelled
from verifix.recipe.stages.refit import Refit

STAGES: dict[str, type[Stage]] = {
    stage.name: stage
    for stage in (
        Project,
        ProjectJittered,
        ProjectUnlabelled,
        Layerwise,
        Refit,
        FineTune,
        Distill,
    )
}
"""Every stage by name."""

PATHS: tuple[tuple[str, ...], ...] = (
    ("project", "refit"),
    ("project", "layerwise", "refit"),
    ("project", "finetune"),
    ("refit",),
    ("finetune",),
)
"""What the recipe "auto" tries, the cheap ones first; what a path begins with counts as a path of its own."""


def recipes() -> dict[str, tuple[str, ...]]:
    """Return the named recipes that are one path: which stages, in which order."""
    return {"verifix": (Project.name,)}


def register_stage(stage: type[Stage]) -> type[Stage]:
    """Add a stage, so that a recipe can name it: ``recipe="project,mine"`` or ``--recipe project,mine``.

    The recipe "auto" tries it, after the best path of verifix's own stages, only if its class sets ``automatic =
    True``: what "auto" does should not depend on which modules have been imported, unless somebody wants it to.

    Parameters
    ----------
    stage
        A class built on `verifix.Stage`. Defined again in the same place, as when a cell of a notebook is run twice,
        it takes the place of the one before.

    Returns
    -------
    type
        The same class, so that this can be used as a decorator.

    Raises
    ------
    UsageError
        If it is no such class, lacks a part, or its name is taken or cannot stand in a recipe.
    """
    if not (isinstance(stage, type) and issubclass(stage, Stage)):
        raise UsageError(f"register_stage was given {stage!r}; it must be a class built on verifix.Stage")
    missing = [name for name in ("name", "about") if not isinstance(getattr(stage, name, None), str)]
    missing += sorted(stage.__abstractmethods__) if inspect.isabstract(stage) else []
    if missing:
        raise UsageError(f"stage {stage.__name__} has no {' and no '.join(missing)}; define what is missing")
    if not re.fullmatch(r"[A-Za-z]\w*", stage.name):
        raise UsageError(f"stage {stage.__name__} is named {stage.name!r}; it must be a word of letters, digits and _")
    if stage.name in {"auto", *recipes()} or _place(STAGES.get(stage.name, stage)) != _place(stage):
        raise UsageError(f"a stage or recipe named {stage.name!r} exists already; choose another name")
    STAGES[stage.name] = stage
    return stage


def projection_among(names: Iterable[str]) -> str | None:
    """Return the first of some stages whose strength is one α for all layers; None if there is none."""
    return next((name for name in names if name in STAGES and STAGES[name].numbers == ("alpha",)), None)


def _place(stage: type[Any]) -> tuple[str, str]:
    return stage.__module__, stage.__qualname__


__all__ = ["PATHS", "STAGES", "Context", "Project", "Stage", "projection_among", "recipes", "register_stage"]

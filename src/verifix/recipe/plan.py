"""Which paths of stages a correction tries, and whether the samples have anything to choose."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from verifix.errors import UsageError, did_you_mean
from verifix.options import CorrectOptions
from verifix.recipe.stages import PATHS, STAGES, Project, Stage, recipes
from verifix.recipe.stages.layerwise import Layerwise
from verifix.recipe.stages.project_jittered import ProjectJittered
from verifix.recipe.stages.project_unlabelled import ProjectUnlabelled

Names = tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What is tried.

    Attributes
    ----------
    paths
        Stages one after the other. What a path begins with is tried as a path of its own.
    base
        The stages whose strengths are given: they always run, and paths are compared with them alone.
    extensions
        Stages that are tried after the best path.
    """

    paths: tuple[Names, ...]
    base: Names = ()
    extensions: Names = ()

    @cached_property
    def prefixes(self) -> tuple[Names, ...]:
        """All paths, and what they begin with."""
        every = (path[:length] for path in self.paths for length in range(1, len(path) + 1))
        return tuple(dict.fromkeys(every))

    @cached_property
    def walk(self) -> tuple[Names, ...]:
        """What is tried, in its order: the paths, depth first, and the extensions, of which only the name is known."""
        return tuple(self._from(())) + tuple((name,) for name in self.extensions)

    def _from(self, prefix: Names) -> Iterator[Names]:
        for name in self.after(prefix):
            yield (*prefix, name)
            yield from self._from((*prefix, name))

    def after(self, prefix: Names) -> list[str]:
        """Return the stages that may follow some stages."""
        return [path[-1] for path in self.prefixes if path[:-1] == prefix]

    def repeats(self, path: Names, shorter: Names) -> bool:
        """Tell whether a shorter path is tried, and all that a path goes on with after it as well."""
        onward = [other[len(path) :] for other in self.prefixes if other[: len(path)] == path]
        return shorter in self.prefixes and all((*shorter, *rest) in self.prefixes for rest in onward)

    @property
    def stages(self) -> list[type[Stage]]:
        """Every stage that may run."""
        return [STAGES[name] for name in dict.fromkeys([*_all(self.paths), *self.extensions])]

    @property
    def choosing(self) -> bool:
        """Whether any strength is left for the verified samples to choose."""
        return bool(set(_all(self.paths)) - set(self.base) or self.extensions)


def _all(paths: Iterable[Names]) -> list[str]:
    return [name for path in paths for name in path]


def stages_of(recipe: str) -> Names:
    """Return the names of the stages in a recipe that lists them.

    Parameters
    ----------
    recipe
        Stage names joined by commas, or the name of a recipe that is one path.

    Returns
    -------
    tuple of str
        The names.

    Raises
    ------
    UsageError
        If a name is unknown, or there twice.
    """
    names = recipes().get(recipe) or tuple(str(recipe).split(","))
    for name in names:
        if name not in STAGES or names.count(name) > 1:
            raise UsageError(
                f"recipe is {recipe!r}; it must be 'auto' or {' or '.join(map(repr, recipes()))}, or stages among "
                f"{', '.join(STAGES)}, each once, joined by commas{did_you_mean(name, ['auto', *recipes(), *STAGES])}"
            )
    return names


def planned(options: CorrectOptions, *, jittered: bool = True) -> Plan:
    """Return what to try: with the recipe "auto" a stage whose strength is given runs alone.

    Parameters
    ----------
    options
        The settings.
    jittered
        Whether there are, or may be, jittered copies of the samples: "auto" then projects by their moments, too.

    Returns
    -------
    Plan
        The paths.
    """
    given = tuple(name for name, stage in STAGES.items() if stage.given(options) is not None)
    if options.recipe == "auto":
        if given:
            return Plan((given,), given)
        extensions = tuple(name for name, stage in STAGES.items() if stage.automatic and stage.tried(options))
        paths = instead(ProjectJittered) + tuple(p for p in PATHS if p not in _projecting()) if jittered else PATHS
        return Plan(paths + (instead(ProjectUnlabelled) if options.beside else ()), extensions=extensions)
    names = stages_of(options.recipe)
    if options.beside and names == (Project.name,) and not given:
        return Plan((names, (ProjectUnlabelled.name,)))
    if options.beside and not any(STAGES[name].unlabelled for name in names):
        users = ", ".join(name for name, stage in STAGES.items() if stage.unlabelled)
        raise UsageError(
            f"unlabelled or noisy inputs were given, but no stage of recipe {options.recipe!r} uses them; name one of "
            f"{users}, or leave them out"
        )
    base = tuple(name for name in names if name in given)
    return Plan(((base,) if base else ()) + (names,), base)


def instead(projection: type[Project]) -> tuple[Names, ...]:
    """Return the paths that project, with another projection in its place."""
    return tuple((projection.name, *path[1:]) for path in _projecting())


def _projecting() -> list[Names]:
    """Return the paths that project, but for those on which something goes on from the α of `Project` itself."""
    return [path for path in PATHS if path[0] == Project.name and Layerwise.name not in path]


def is_choosing(options: CorrectOptions) -> bool:
    """Tell whether any stage's strength is left for the verified samples to choose."""
    return planned(options).choosing


def minimum_samples(options: CorrectOptions) -> int:
    """Return how many verified samples these settings need: few leave nothing to choose from."""
    return max(50, 2 * options.folds) if is_choosing(options) else 2

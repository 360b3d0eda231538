"""Which layers the user wants to correct."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from verifix.capture.layer import Layer
from verifix.errors import UsageError


@dataclass(frozen=True)
class Selection:
    """Which layers are wanted: patterns are parameter-name globs or names of layer kinds.

    Attributes
    ----------
    include
        Only layers that match one of these; None for all.
    exclude
        Never layers that match one of these.
    only
        Of those, only these layers; None for all.
    """

    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    only: frozenset[Layer] | None = None

    def wants(self, layer: Layer) -> bool:
        """Tell whether a layer is selected."""
        included = self.include is None or any(_matches(layer, p) for p in self.include)
        included = included and (self.only is None or layer in self.only)
        return included and not any(_matches(layer, p) for p in self.exclude)

    def check(self, layers: Sequence[Layer]) -> None:
        """Refuse a pattern that matches none of the layers seen.

        Parameters
        ----------
        layers
            Every layer of the model.

        Raises
        ------
        UsageError
            Naming the pattern and what there is to match.
        """
        for pattern in (*(self.include or ()), *self.exclude):
            if not any(_matches(layer, pattern) for layer in layers):
                known = sorted({layer.kind for layer in layers}) + [x.parameter for x in layers[:3]]
                raise UsageError(
                    f"the pattern {pattern!r} matches no layer; it must be a kind or a parameter-name glob"
                    f"{' such as ' + ', '.join(known) if known else ', and no layer was seen'}"
                )


def _matches(layer: Layer, pattern: str) -> bool:
    return layer.kind == pattern or fnmatch.fnmatchcase(layer.parameter, pattern)


def selection_of(include: Sequence[str] | None, exclude: Sequence[str] | None) -> Selection:
    """Build a selection from a user's lists of patterns."""
    return Selection(None if include is None else tuple(include), tuple(exclude or ()))

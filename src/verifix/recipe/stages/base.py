"""What a stage is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from verifix.model.weights import Update
from verifix.recipe.candidates import Candidates
from verifix.recipe.context import Context

T = TypeVar("T")


@dataclass(frozen=True)
class Cost:
    """What one `fit` takes, for choosing and for telling the user.

    Attributes
    ----------
    flops
        Floating-point operations of the first strength, in float64.
    flops_again
        Of each further strength in the same context.
    nbytes
        Memory that the context holds for it, in bytes.
    runs, runs_again
        Samples that the model is run on for the first strength, and for each further one; a backward pass counts as
        two runs.
    """

    flops: float
    flops_again: float
    nbytes: int
    runs: float = 0.0
    runs_again: float = 0.0


class Stage(Protocol):
    """One step of a correction, with a strength and the choice to do nothing.

    A stage sees a context and nothing else: not the folds' held-out samples, not the scores of its candidates.
    """

    name: str

    def obstacle(self, context: Context) -> str:
        """Say what keeps this stage from running in this context, such as a layer it needs; empty if nothing does."""

    def candidates(self, context: Context) -> Candidates:
        """Return the strengths to choose from."""

    def fit(self, context: Context, strength: Any) -> Update:
        """Return new weights, fitted on the context's samples with this strength, whatever was tried before."""

    def layers(self, context: Context, strength: Any) -> Mapping[str, Mapping[str, float]]:
        """Say what a strength that has been fitted means for each layer, by parameter name; may be empty."""

    def cost(self, context: Context) -> Cost:
        """Estimate what `fit` takes, before running it."""

"""What a stage is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor

from verifix.model.weights import Update
from verifix.options import CorrectOptions
from verifix.recipe.candidates import Candidates, Strength
from verifix.recipe.context import Context


class Stage(ABC):
    """One step of a correction, with a strength and the choice to do nothing.

    The class says what the step is. An instance is its fitter: the step at work in one context, which keeps what its
    strengths share in fields of its own. It sees the context and nothing else: not the samples of folds that are held
    out, not the scores of its candidates.

    Parameters
    ----------
    context
        The samples to fit on, and the weights as earlier stages left them.

    Attributes
    ----------
    name
        What a recipe calls it.
    about
        What it does, in one sentence, for the report.
    numbers
        What the numbers of a strength are called, in their order.
    automatic
        Whether the recipe "auto" tries it after its best path; else it runs where a path or a recipe names it.
    trains
        Whether it fits weights to the labels, and so leaves frozen ones (`requires_grad` off) as they are.
    unlabelled
        Whether it uses unlabelled inputs.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    numbers: ClassVar[tuple[str, ...]] = ("strength",)
    automatic: ClassVar[bool] = False
    trains: ClassVar[bool] = False
    unlabelled: ClassVar[bool] = False

    def __init__(self, context: Context) -> None:
        self.context = context

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Callable[[Context], Stage]]:
        """Lend what makes fitters; what these have in common may live until the end.

        Yields
        ------
        callable
            Context → fitter.
        """
        yield cls

    @classmethod
    def given(cls, options: CorrectOptions) -> Strength | None:  # noqa: ARG003 - most are always chosen
        """Return the strength that the settings fix; None, the default, where the samples choose."""
        return None

    @classmethod
    def tried(cls, options: CorrectOptions) -> bool:  # noqa: ARG003 - most need nothing but verified samples
        """Tell whether the recipe "auto" has what an automatic stage needs."""
        return True

    def obstacle(self) -> str:
        """Say what keeps this stage from running here, such as a layer it needs; empty if nothing does."""
        return ""

    @abstractmethod
    def candidates(self) -> Candidates:
        """Return the strengths to choose from."""

    @abstractmethod
    def fit(self, strength: Any) -> Update:
        """Return new weights, fitted on the context's samples with this strength, whatever was tried before."""

    def predict(self, strength: Any) -> Tensor:
        """Return what the model would answer after `fit`, ``[n, outputs]``, for the samples outside the context."""
        return self.context.predict(self.context.outside, self.fit(strength))

    def layers(self, strength: Any) -> Mapping[str, Mapping[str, float]]:  # noqa: ARG002 - none, unless it says so
        """Say what a strength that has been fitted means for each layer, by parameter name; nothing by default."""
        return {}

    def release(self) -> None:  # noqa: B027 - most keep nothing large
        """Let go of what is large; called after each round of strengths, and `fit` may follow again."""

    @contextmanager
    def round(self) -> Iterator[None]:
        """Fit some strengths, and let go of what they shared at the end."""
        try:
            yield
        finally:
            self.release()

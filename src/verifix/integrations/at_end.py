"""Correct and prove at the end of a training: what the callbacks of all libraries share."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import nn

from verifix.algorithm import correct
from verifix.correction import Correction
from verifix.errors import UsageError, VerifixError
from verifix.model import ranks
from verifix.proof import Proof

Apply = Literal["proven", "always", "never"]


class AtEnd:
    """Correct a model when its training has ended, prove the gain, and give it the corrected weights.

    In a data-parallel training all processes correct together, share the work, and get the same weights.

    If samples or settings are refused then, that is a warning, and the model keeps its weights: a training that took
    hours must not be lost to it.

    Attributes
    ----------
    correction
        The correction; None before the end of the training.
    proof
        Its proof; None before the end, or if no change won.
    applied
        Whether the model has the corrected weights.
    """

    def __init__(self, verified: Any, *, apply: Apply = "proven", module: str | None = None, **settings: Any) -> None:
        """Keep what is needed at the end.

        Parameters
        ----------
        verified
            The verified samples, which the training must not use, in any form that `verifix.correct` takes.
        apply
            When the model gets the corrected weights: "proven" if the proof says "improved", "always" if any change
            won, "never" to leave it alone; `correction` holds them in any case.
        module
            The name of the part that maps inputs to logits, such as "net"; None for the whole model.
        **settings
            Settings of `verifix.correct` and `verifix.prove`.

        Raises
        ------
        UsageError
            If `apply` is another word, or `verified_from` is not among the settings, without which nothing is proven.
        """
        if apply not in get_args(Apply):
            raise UsageError(f"apply is {apply!r}; it must be one of {', '.join(get_args(Apply))}")
        if settings.get("verified_from") is None:
            raise UsageError(
                "a proof at the end needs verified_from: give 'unseen' if the training does not use the samples"
            )
        self.verified, self.apply, self.module, self.settings = verified, apply, module, settings
        self.correction: Correction | None = None
        self.proof: Proof | None = None
        self.applied = False

    def correct(self, model: nn.Module, verified: Any) -> dict[str, float]:
        """Correct, prove and apply; see `__init__`.

        Parameters
        ----------
        model
            The trained model.
        verified
            The samples.

        Returns
        -------
        dict
            Figures to log, by name.
        """
        self.correction, self.proof, self.applied = None, None, False
        part = self._part(model)
        _take_buffers_of_first(part)
        with _training_survives("corrected"):
            self.correction = correct(part, verified, **self.settings)
        if self.correction is not None and self.correction.changed:
            with _training_survives("proven to be better"):
                self.proof = self.correction.prove()
            proven = self.proof is not None and self.proof.verdict == "improved"
            if self.apply == "always" or (self.apply == "proven" and proven):
                self.correction.apply_(part)
                self.applied = True
        return self._figures()

    def _part(self, model: nn.Module) -> nn.Module:
        try:
            return model if self.module is None else model.get_submodule(self.module)
        except AttributeError:
            names = ", ".join(name for name, _ in model.named_children())
            raise UsageError(f"module is {self.module!r}, but the model has the parts {names}; name one") from None

    def check(self, model: nn.Module) -> None:
        """Refuse a part that the model does not have before the training begins."""
        self._part(model)

    def _figures(self) -> dict[str, float]:
        figures = {"verifix/applied": float(self.applied)}
        if self.proof is not None:
            found = self.proof.comparison
            figures |= {
                "verifix/accuracy_before": found.before.accuracy,
                "verifix/accuracy_after": found.after.accuracy,
            }
            figures |= {"verifix/gain": found.gain.estimate, "verifix/gain_low": found.gain.low}
            figures |= {"verifix/gain_high": found.gain.high}
        return figures


def _take_buffers_of_first(model: nn.Module) -> None:
    """Give the model of every process the buffers of the first, as DistributedDataParallel does before each batch.

    After the last batch every process has running statistics of its own, and those of the first are saved.
    """
    if ranks.size() > 1:
        own = dict(model.named_buffers())
        first = ranks.from_first({name: buffer.cpu() for name, buffer in own.items()})
        with torch.no_grad():
            for name, buffer in own.items():
                buffer.copy_(first[name])


@contextmanager
def _training_survives(what: str) -> Iterator[None]:
    try:
        yield
    except VerifixError as error:
        warnings.warn(f"the trained model was not {what}: {error}", UserWarning, stacklevel=4)

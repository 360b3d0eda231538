"""The last linear layer, fitted to the verified labels by logistic regression pulled towards the trained one."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from torch import Tensor

from verifix.capture.layer import read_matrix, write_bias, write_matrix
from verifix.losses import best_sharpness
from verifix.model.weights import Update
from verifix.recipe.candidates import Grid
from verifix.recipe.context import Context
from verifix.recipe.frozen import held_by
from verifix.recipe.stages.base import Stage
from verifix.recipe.stages.heads import PULLS, TOLERANCE, Head, find_head, fit_logistic, watch


class Refit(Stage):
    """Minimise cross-entropy + λ / 2 · (s ‖W − τ W₀‖² + ‖b − τ b₀‖²) over W and b; its strength is the pull λ.

    τ is one over the temperature that suits the trained logits best, so that a network that is too sure of itself, or
    whose logits a projection has shrunk, is pulled towards its own answer and not towards its confidence.

    Attributes
    ----------
    independent
        Whether the answers follow from what the head sees, so that the layers before it need not run again; None
        before that is known.
    """

    independent: bool | None = None

    name = "refit"
    about = "The last layer, fitted to the verified labels and pulled towards its previous weights."
    numbers = ("pull",)
    trains = True

    @cached_property
    def head(self) -> Head | None:
        """The layer to fit; None if there is none."""
        return find_head(self.context)

    @cached_property
    def outside(self) -> Tensor | None:
        """What the head sees of the samples outside, ``[n, d]``; None if that is not one row of each."""
        assert self.head is not None  # noqa: S101 - `obstacle` has been asked
        rows = watch(self.context, [self.head.layer], self.context.outside)[1].get(self.head.layer)
        return rows[:, 0] if rows is not None and rows.shape[1] == 1 else None

    def obstacle(self) -> str:
        """Say if there is no linear layer whose products are the logits."""
        if self.head is None:
            return "no linear layer that may be corrected computes the logits"
        return held_by(self.context, parameters_of(self.head))

    def candidates(self) -> Grid:
        """Return λ from 10⁻⁵ to 1: below is a fit without a pull, above is none."""
        return PULLS

    def fit(self, strength: float) -> Update:
        """Return the head that fits the labels, pulled back by λ.

        Parameters
        ----------
        strength
            λ, above 0.

        Returns
        -------
        Update
            New weight, and bias if the head has one of its own.
        """
        context, head = self.context, self.head
        assert head is not None  # noqa: S101 - `obstacle` has been asked
        trained = read_matrix(head.layer, context.parameter)[0].cpu()
        sharpness = best_sharpness(head.features @ trained.mT + head.offset, context.labels) or 1.0
        free = head.bias is not None
        offset = head.offset * (sharpness if free else 1.0)
        weight, bias = fit_logistic(
            head.features, context.labels, trained * sharpness, strength, free_bias=free, offset=offset
        )
        return written(context, head, weight, bias)

    def predict(self, strength: float) -> Tensor:
        """Return the logits from what the head sees, if two samples show that this is all it takes."""
        update, context, head = self.fit(strength), self.context, self.head
        assert head is not None  # noqa: S101 - it has been fitted
        if self.outside is None or self.independent is False:
            return context.predict(context.outside, update)
        beside = head.offset
        if head.bias is not None:
            beside = head.beyond + head.bias.view(update[head.bias.parameter]).double().cpu()
        logits = self.outside @ read_matrix(head.layer, update.__getitem__)[0].cpu().mT + beside
        if self.independent is None:  # not so if the weight is used elsewhere as well, or outputs are no logits
            found = context.predict(context.outside[:2], update)
            self.independent = bool((found - logits[:2]).abs().max() <= TOLERANCE * found.abs().max())
        return logits if self.independent else context.predict(context.outside, update)

    def layers(self, strength: float) -> Mapping[str, Mapping[str, float]]:
        """Return λ for the head."""
        return {} if self.head is None else {self.head.layer.parameter: {"pull": strength}}


def parameters_of(head: Head) -> list[str]:
    """Return the parameters that a head is made of."""
    return [*head.layer.parameters, *([head.bias.parameter] if head.bias else [])]


def written(context: Context, head: Head, weight: Tensor, bias: Tensor) -> Update:
    """Return the update that puts ``[outputs, d]`` and ``[outputs]`` into a head."""
    update = {name: context.writable(name) for name in parameters_of(head)}
    write_matrix(head.layer, update, weight.unsqueeze(0).to(context.run.device))
    if head.bias is not None:
        write_bias(head.bias, update, bias - head.beyond)
    return update

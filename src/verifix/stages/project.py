"""The paper's stage: every layer's weight times P(α), with one α for all layers. It uses no labels.

Two options go beyond the paper: taking the mean off the rows (`affine`), and shrinking what suspected samples excite.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from verifix.capture import Account, Bias, Layer, read_matrix, write_bias, write_matrix
from verifix.collect import Collected
from verifix.following import BatchNorm
from verifix.projection import Factors, check_alpha, check_contrast, prepare
from verifix.scoring import Update
from verifix.stages.base import Context, Cost
from verifix.strength import Grid


class Project:
    """Scaled activation projection with strength α (Verifix, arXiv 2403.08618; see `verifix.projection`).

    Parameters
    ----------
    affine
        Whether the mean of the rows is taken off first, wherever the shift that makes up for it has a place.
    contrast
        γ, the weight of suspected samples, if the context has any.
    """

    name = "project"

    def __init__(self, *, affine: bool = False, contrast: float = 1.0) -> None:
        self.affine = affine
        self.contrast = contrast

    def obstacle(self, context: Context) -> str:
        """Nothing but layers could be missing; labels it does not use."""
        return "" if context.layers else "no layer can be corrected"

    def candidates(self, context: Context) -> Grid:  # noqa: ARG002 - the same for every network
        """Return α from 10 to 10⁶: below lies almost nothing of the network, above almost all of the projector."""
        return Grid(10, 1e6)

    def fit(self, context: Context, strength: float) -> Update:
        """Return W P(α) for every layer, and new biases for those that are centred, from one pass of the old weights.

        Parameters
        ----------
        context
            Where to take moments and weights from.
        strength
            α, above 0.

        Returns
        -------
        Update
            New parameters: computed in float64, rounded once to the dtype they will have.
        """
        alpha = check_alpha(strength)
        if context.collected.suspects:
            check_contrast(alpha, self.contrast)
        update: dict[str, Tensor] = {}
        for layer, factors in context.remember("factors", lambda: self._prepare(context)).items():
            for name in layer.parameters:
                if name not in update:
                    update[name] = context.writable(name)
            matrix = factors.project(alpha)
            write_matrix(layer, update, matrix)
            if factors.mean is not None:
                _write_shift(context, layer, factors.shift(matrix).flatten(), update)
        return update

    def layers(self, context: Context, strength: float) -> Mapping[str, Mapping[str, float]]:
        """Return α for every layer."""
        return {layer.parameter: {"alpha": strength} for layer in context.layers}

    def _prepare(self, context: Context) -> dict[Layer, Factors]:
        collected = context.collected
        return {
            layer: prepare(
                read_matrix(layer, context.parameter),
                context.moments(layer),
                centred=self.affine and not isinstance(collected.shifts[layer], str),
                suspects=collected.suspects.get(layer),
                contrast=self.contrast,
            )
            for layer in context.layers
        }

    def cost(self, context: Context) -> Cost:
        """Estimate the primal form's multiplications; the dual is chosen only where it takes fewer."""
        first = again = 0.0
        nbytes = 0
        for layer in context.layers:
            groups, outputs, width = read_matrix(layer, context.parameter).shape
            product = 2 * groups * outputs * width**2
            again += groups * width**3 / 3 + 2 * product
            first += product
            nbytes += 8 * groups * (width**2 + 2 * outputs * width)
        return Cost(first + again, again, nbytes)


def _write_shift(context: Context, layer: Layer, shift: Tensor, update: dict[str, Tensor]) -> None:
    """Add a shift ``[groups · d_out]`` to what the layer's outputs get anyway, rounding once to the dtype it has."""
    place = context.collected.shifts[layer]
    if isinstance(place, BatchNorm):
        name, shift = place.bias, place.taken_up(shift, context.parameter)
        place = Bias(name, 0, len(shift))
    assert isinstance(place, Bias)  # noqa: S101 - layers without a place are not centred
    name = place.parameter
    if name not in update:
        update[name] = context.writable(name)
    before = place.view(context.parameter(name)).double()
    write_bias(place, update, before + shift.to(before.device))


def centring(collected: Collected, account: Account) -> str:
    """Say in words where the shift of a parameter's layers has gone, or why they are not centred.

    Parameters
    ----------
    collected
        The first pass.
    account
        A parameter that is corrected.

    Returns
    -------
    str
        One line; empty for a parameter without layers of its own.
    """
    words = []
    for layer in account.layers:
        place = collected.shifts[layer]
        if isinstance(place, str):
            words.append(f"not centred: {place}")
        else:
            words.append(f"centred, its shift is in {place.bias if isinstance(place, BatchNorm) else place.parameter}")
    return "; ".join(dict.fromkeys(words))

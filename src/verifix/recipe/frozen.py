"""What stages leave as it is: parameters with `requires_grad` off, and buffers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from verifix.capture.collect import Collected
from verifix.errors import first_of
from verifix.recipe.context import Context

LARGE_SHARE = 0.1
"""Share of the multiplied numbers above which buffers are told; `verifix.inspect` warns below 90% corrected."""


def frozen(context: Context) -> set[str]:
    """Return the parameters that stages must not train.

    A frozen parameter stays as it is unless `include` names its layer. Where all are frozen, as in models that were
    loaded to run, that says nothing on any of them, and none counts as frozen.

    Parameters
    ----------
    context
        The model, and the layers that the user chose.

    Returns
    -------
    set of str
        Their names.
    """
    off, floating = _off(context.run.model)
    return set() if context.run.selection.include is not None or len(off) == len(floating) else set(off)


def remark_on_frozen(context: Context, training: Sequence[str]) -> str:
    """Say what becomes of frozen parameters.

    Parameters
    ----------
    context
        As in `frozen`.
    training
        The stages that will run and train.

    Returns
    -------
    str
        A sentence or two; empty if none is frozen, or no stage trains.
    """
    off, floating = _off(context.run.model)
    if not off or not training:
        return ""
    names = " and ".join(filter(None, [", ".join(training[:-1]), training[-1]]))
    leave = f"leave{'s' * (len(training) == 1)}"
    if context.run.selection.include is not None:
        return f"{len(off)} of {len(floating)} parameters are frozen; {names} may change those that include= names."
    if len(off) == len(floating):
        return (
            f"All parameters are frozen (requires_grad=False), as after loading a model to run it, so {names} may "
            "change any of them; exclude= keeps layers as they are."
        )
    return (
        f"{len(off)} of {len(floating)} parameters are frozen (requires_grad=False): {names} {leave} them as they are. "
        "Name their layers with include= to train them; exclude= keeps layers out of all stages."
    )


def held_by(context: Context, names: Iterable[str]) -> str:
    """Return why a stage that would train these parameters cannot; empty if none of them is frozen."""
    held = sorted(frozen(context).intersection(names))
    return f"{held[0]} is frozen (requires_grad=False); name its layer with include= to train it" if held else ""


def _off(model: nn.Module) -> tuple[Sequence[str], Sequence[str]]:
    """Return the names of the frozen parameters, and of all with fractions."""
    floating = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    return [name for name, p in floating.items() if not p.requires_grad], list(floating)


def remark_on_buffers(collected: Collected) -> str:
    """Say how much of what multiplies activations are buffers, if that is more than some fixed filters."""
    buffers = sum(collected.buffers.values())
    total = buffers + sum(account.size for account in collected.accounts if account.multiplies)
    if buffers <= LARGE_SHARE * total:
        return ""
    names = first_of(map(repr, collected.buffers))
    return (
        f"{100 * buffers / total:.0f}% of the numbers that multiply activations are buffers ({names}), which no stage "
        "changes; make them parameters (nn.Parameter) if they are weights."
    )

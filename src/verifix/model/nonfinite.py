"""Say where a model's values stop being finite: for which sample, and in the output of which module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from verifix.errors import DataError
from verifix.model.run import Forward, run_model
from verifix.model.tensors import tensors_in


def check_finite(logits: Tensor, indices: Sequence[int] = (), place: Callable[[], str] = str) -> None:
    """Refuse logits that are not finite.

    Parameters
    ----------
    logits
        ``[n, outputs]``.
    indices
        Which samples these are; may be empty.
    place
        Says where it began, as `first_broken` does; called only if it is needed.

    Raises
    ------
    DataError
        Naming the first sample, and the place.
    """
    finite = torch.isfinite(logits)
    if finite.all():
        return
    rows = finite.flatten(1).all(dim=1) if finite.ndim > 1 else finite.reshape(-1)
    row = int(rows.logical_not().nonzero()[0])
    sample = f" for sample {indices[row]}" if len(rows) == len(indices) else ""
    module = place()
    began = f", first in the output of {module}" if module else ""
    raise DataError(
        f"the model's logits contain NaN or Inf{sample}{began}; check its weights and the preprocessing of the inputs"
    )


def first_tensor(output: object) -> object:
    """Return the logits of a mapping, such as a ModelOutput of transformers, or the first entry of a tuple."""
    if isinstance(output, Mapping):
        output = output.get("logits")
    elif hasattr(output, "logits"):
        output = output.logits
    return output[0] if isinstance(output, (tuple, list)) and output else output


def first_broken(model: nn.Module, inputs: Any, forward: Forward | None = None) -> str:
    """Run a borrowed model once more, and find the module whose output is not finite before any other's.

    Parameters
    ----------
    model
        The model.
    inputs
        A batch, on the model's device.
    forward
        As in `run_model`.

    Returns
    -------
    str
        Such as ``'fc1' (Linear)``; empty if no module below the model has such an output.
    """
    broken: list[str] = []

    def look(name: str, module: nn.Module, _: Any, output: Any) -> None:
        if not broken and not all(torch.isfinite(x).all() for x in tensors_in(output) if x.is_floating_point()):
            broken.append(f"{name!r} ({type(module).__name__})")

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if name and not isinstance(module, torch.jit.ScriptModule):  # which takes no hooks
                stack.callback(module.register_forward_hook(partial(look, name)).remove)
        run_model(model, inputs, forward)
    return broken[0] if broken else ""

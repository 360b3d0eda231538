"""Exchange the weights of a correction in a model: the original ones for the corrected ones, or back."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from verifix.capture.parameters import shared_in_part
from verifix.errors import CheckpointError, UsageError
from verifix.model.corrected import remember_corrected
from verifix.model.tensors import tensor_digest
from verifix.model.weights import tensors_of
from verifix.model.wrappers import unwrapped
from verifix.model.writing import obstacles, write_all


def blended(original: Mapping[str, Tensor], corrected: Mapping[str, Tensor], blend: float) -> dict[str, Tensor]:
    """Return new values between the original ones (0) and the corrected ones (1); see `Correction.blended`."""
    if not 0 <= blend <= 1:
        raise UsageError(f"blend is {blend!r}; it must be a number from 0 (no change) to 1 (the full correction)")
    if blend in (0, 1):
        return dict(corrected if blend else original)
    return {
        name: ((1 - blend) * before.double() + blend * corrected[name].double()).to(before.dtype)
        for name, before in original.items()
    }


def swap(model: nn.Module, expected: Mapping[str, Tensor], new: Mapping[str, Tensor], verb: str) -> nn.Module:
    """Write new weights in place of the expected ones, all or none; the verb is that of `Correction`'s methods."""
    tensors = tensors_of(unwrapped(model), every_name=True)
    shared = {name: f"{why}; part them first" for name, why in shared_in_part(unwrapped(model)).items()}
    reasons = shared | obstacles({name: tensors[name] for name in expected if name in tensors})
    for name, value in expected.items():
        if name not in tensors:
            raise CheckpointError(f"cannot {verb}: the model has no {name!r}; give the model that was corrected")
        if name in reasons:
            raise CheckpointError(f"cannot {verb}: {name!r} {reasons[name]}")
        found = tensor_digest(tensors[name])
        if found != tensor_digest(value):
            wanted, result = ("original", "corrected") if verb == "apply" else ("corrected", "original")
            has = f"already has the {result}" if found == tensor_digest(new[name]) else "has other"
            raise CheckpointError(
                f"cannot {verb}: {name!r} {has} weights (SHA-256 {found[:12]}…); give the {wanted} model"
            )
    if lost := write_all(tensors, new, expected):
        raise CheckpointError(
            f"cannot {verb}: {lost[0]!r} shares memory with another weight that gets other values; part them first"
        )
    if verb == "apply":
        remember_corrected(unwrapped(model), expected, new)
    return model

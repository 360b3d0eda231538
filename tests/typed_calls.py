"""What a type checker must see in the calls; never run. mypy complains about an ignored error that is none."""

from __future__ import annotations

import torch
from torch import nn

import verifix


def right(model: nn.Module, device: torch.device) -> verifix.Proof:
    verifix.correct(model, None, alpha=3, include=("head.*",), device=device, moments="m.safetensors", progress=False)
    return verifix.prove(
        model, None, alpha="auto", weights=[1.0], score=lambda logits, labels: logits.sum(), verified_from="unseen"
    )


def wrong(model: nn.Module) -> None:
    verifix.correct(model, None, alpha="strong")  # type: ignore[arg-type]
    verifix.correct(model, None, alhpa=3)  # type: ignore[call-arg]
    verifix.prove(model, None, folds="five", verified_from="unseen")  # type: ignore[arg-type]
    verifix.correct(model, None, verified_from="space")  # type: ignore[arg-type]
    verifix.correct(model, None, weights=[1.0])  # type: ignore[call-arg]

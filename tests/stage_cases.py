"""What the tests of stages share: a context on a model that is lent, made from plain tensors."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import torch
from torch import nn

from tests.cases import small_data, small_net
from verifix.capture.collect import collect
from verifix.capture.layer import rounded_once
from verifix.capture.selection import selection_of
from verifix.losses import cross_entropy
from verifix.model.predict import predict
from verifix.model.samples import read_samples
from verifix.model.weights import Update
from verifix.model.work import multiplications
from verifix.recipe.candidates import Listed
from verifix.recipe.context import Context, Run
from verifix.recipe.stages import STAGES, Stage
from verifix.recipe.stages.distill import Distill
from verifix.recipe.stages.project_jittered import ProjectJittered
from verifix.recipe.stages.project_unlabelled import ProjectUnlabelled

CPU = torch.device("cpu")


class Recentre(Stage):
    """Moves the running statistics of BatchNorms towards those of the samples: it changes buffers, and no weights."""

    name, about, numbers = "recentre", "Statistics of the samples.", ("share",)

    def candidates(self) -> Listed:
        """Shares of the new statistics."""
        return Listed((0.25, 0.5, 1.0))

    def fit(self, strength: float) -> Update:
        """Statistics between the old and the new ones."""
        context, update = self.context, {}
        norms = {n: m for n, m in context.run.model.named_modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)}

        def hook(name: str):
            def note(_, inputs) -> None:
                found = torch.var_mean(inputs[0].double(), dim=[dim for dim in range(inputs[0].ndim) if dim != 1])
                for buffer, value in zip((f"{name}.running_var", f"{name}.running_mean"), found, strict=True):
                    mixed = context.parameter(buffer).double().lerp(value, strength)
                    update[buffer] = context.writable(buffer)
                    update[buffer].copy_(rounded_once(mixed, update[buffer].dtype))

            return note

        with ExitStack() as stack:
            for name, norm in norms.items():
                stack.enter_context(norm.register_forward_pre_hook(hook(name)))
            size = len(context.indices)
            with context.corrected() as model:
                predict(model, context.run.samples, context.indices, size, context.run.device)
        return update


ALONE = tuple(name for name, stage in STAGES.items() if stage not in (Distill, ProjectJittered, ProjectUnlabelled))
"""The stages that need nothing beside the verified samples and one pass over them."""

NEAR_A_TIE, NEAREST = 1 + 2.0**-8 + 2.0**-30, 1 + 2.0**-7
"""A number that is rounded to 1 on the way through float32, and to this in bfloat16 if it is rounded once."""


def interleaved(count: int, folds: int) -> list[range]:
    """Folds that share nothing: every so-manieth sample."""
    return [range(k, count, folds) for k in range(folds)]


def context_of(
    model: nn.Module, x, y, folds=1, without=None, include=None, exclude=None, batch_size=64, **settings
) -> Context:
    """A context of all folds but one; the model must be borrowed, or in eval mode and without gradients."""
    samples, members = read_samples((x, y)), interleaved(len(y), folds)
    selection = selection_of(include, exclude)
    with torch.no_grad():
        collected = collect(model, samples, members, batch_size=batch_size, device=CPU, selection=selection)
    kept = [k for k in range(folds) if k != without]
    settings.setdefault("work", float(sum(multiplications(model, samples, [0], CPU))))
    run = Run(model, samples, members, collected, {}, batch_size, CPU, selection, **settings)
    return Context(run, kept)


def with_run(context: Context, **changes) -> Context:
    """The same context with other samples, or another model, or other settings."""
    return replace(context, run=replace(context.run, **changes))


def inputs_of(model: nn.Module, x) -> dict[str, torch.Tensor]:
    """What every linear layer of a network sees, by the name of its weight."""
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, args, name=name: seen.update({f"{name}.weight": args[0].clone()}))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            model(**x) if isinstance(x, dict) else model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def same(a: dict, b: dict) -> bool:
    """Whether two updates are alike to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def memorised(model: nn.Module, x, y, steps: int = 40) -> nn.Module:
    """Train a network in eval mode, every fifth label wrong: one that knows something, and can be corrected."""
    wrong = torch.where(torch.arange(len(y)) % 5 == 0, (y + 1) % (int(y.max()) + 1), y)
    optimizer = torch.optim.Adam(model.eval().parameters(), 1e-2)
    with torch.enable_grad():
        for _ in range(steps):
            optimizer.zero_grad()
            logits = model(**x).logits if isinstance(x, dict) else model(x)
            cross_entropy(logits, wrong).mean().backward()
            optimizer.step()
    model.zero_grad()
    return model


def noisy_case(count: int = 60) -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A network, verified samples, and as many inputs again that are others."""
    x, y = small_data(2 * count)
    return memorised(small_net(), x, y, 5).eval(), x[:count], y[:count], x[count:]


def projected_by_hand(weight, rows, alpha: float):
    """Return W P(α) with P = C (C (1 − 1/α) + I/α)⁻¹, C scaled to trace 1; in float64."""
    gram = rows.double().T @ rows.double()
    c, eye = gram / gram.trace(), torch.eye(len(gram), dtype=torch.float64)
    return weight.double() @ c @ torch.linalg.inv(c * (1 - 1 / alpha) + eye / alpha)

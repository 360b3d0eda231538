from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tests.cases import small_data, small_net
from tests.stage_cases import CPU, memorised
from verifix import DataError
from verifix.losses import cross_entropy, tempered_cross_entropy
from verifix.model.borrow import borrowed
from verifix.model.gradients import gradients
from verifix.model.samples import read_samples


def case(classes: int = 3, dtype=torch.float64):
    x, y = small_data(60, classes=max(classes, 2))
    y = torch.where(torch.arange(60) % 7 == 0, (y + 1) % max(classes, 2), y)  # so that some temperature is best
    return memorised(small_net(classes=classes).to(dtype), x.to(dtype), y), x.to(dtype), y


def found_by(model, x, y, indices=range(60), names=None, **settings):
    names = [name for name, _ in model.named_parameters()] if names is None else names
    settings = {"batch_size": 64, "device": CPU} | settings
    with borrowed(model):
        return gradients(model, read_samples((x, y)), indices, names, **settings)


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_it_is_the_gradient_of_the_whole_batch_whatever_the_batch_size(batch_size, classes):
    model, x, y = case(classes)
    indices = [i for i in range(60) if i % 3]
    loss = cross_entropy(model(x[indices]), y[indices]).mean()
    expected = torch.autograd.grad(loss, list(model.parameters()))
    found = found_by(model, x, y, indices, batch_size=batch_size)
    for name, value in zip(dict(model.named_parameters()), expected, strict=True):
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-13)


def test_it_is_as_exact_as_the_model():
    model, x, y = case()
    at = model[5].bias.detach().clone()

    @torch.no_grad()
    def loss(step: float) -> float:
        changed = {"5.bias": at + step * torch.tensor([1.0, 0, 0], dtype=torch.float64)}
        return float(cross_entropy(functional_call(model, changed, (x,)), y).mean())

    slope = (8 * (loss(1e-3) - loss(-1e-3)) - loss(2e-3) + loss(-2e-3)) / 12e-3
    assert float(found_by(model, x, y)["5.bias"][0]) == pytest.approx(slope, abs=1e-11)


def test_half_precision_logits_are_scored_in_float32(monkeypatch):
    model, x, y = case(dtype=torch.bfloat16)
    scored = []

    def noted(logits, labels):
        scored.append(logits.dtype)
        return cross_entropy(logits, labels)

    monkeypatch.setattr("verifix.model.gradients.cross_entropy", noted)
    found = found_by(model, x, y)
    assert scored == [torch.float32]
    assert found["5.bias"].dtype == torch.bfloat16
    logits = model(x).detach().float().requires_grad_()
    (slope,) = torch.autograd.grad(cross_entropy(logits, y).mean(), logits)
    torch.testing.assert_close(found["5.bias"].float(), slope.sum(dim=0), rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("classes", [1, 3])
def test_tempered_it_is_the_slope_of_the_loss_at_the_best_temperature(classes):
    model, x, y = case(classes)
    found = found_by(model, x, y, tempered=True)
    plain = found_by(model, x, y)
    for name, place in (("0.weight", (2, 3)), ("5.weight", (0, 4)), ("5.bias", (0,)), ("1.bias", (5,))):
        value = model.get_parameter(name).detach()

        @torch.no_grad()
        def loss(step: float, name=name, place=place, value=value) -> float:
            moved = value.clone()
            moved[place] += step
            return float(tempered_cross_entropy(functional_call(model, {name: moved}, (x,)), y).mean())

        slope = (loss(1e-3) - loss(-1e-3)) / 2e-3
        assert float(found[name][place]) == pytest.approx(slope, rel=1e-3, abs=1e-7), name
    assert not torch.allclose(found["5.weight"], plain["5.weight"], rtol=1e-2)


def test_parameters_without_a_part_in_the_loss_get_zero_and_only_those_named_are_there():
    model, x, y = case()
    model.register_parameter("idle", nn.Parameter(torch.ones(3, dtype=torch.float64)))
    found = found_by(model, x, y, names=["idle", "5.bias"])
    assert set(found) == {"idle", "5.bias"}
    assert not found["idle"].any()


def test_a_gradient_that_is_not_finite_is_refused_by_name():
    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(()))
            self.net = small_net()

        def forward(self, x):
            return self.net(x) + self.scale.sqrt()

    with pytest.raises(DataError, match="gradient of 'scale' contains NaN or Inf"):
        found_by(Root().eval(), *small_data())

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

from tests.cases import small_data
from tests.stage_cases import inputs_of, memorised
from verifix.recipe.stages.heads import fit_logistic
from verifix.recipe.stages.linear_probe import LinearProbe, _embedded

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


def mlp(activation, hidden: int = 3, width: int = 12, classes: int = 3, between=None) -> nn.Sequential:
    """Linear layers 0, 2, 4, …, or, with something between the first two, 0, 3, 5, …"""
    layers = [nn.Linear(8, width), *([between] if between else []), activation()]
    for _ in range(hidden - 1):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, classes))


def chain_of(lend, model, x, y, **settings) -> tuple:
    context = lend(model.eval(), x, y, **settings)
    site = LinearProbe(context).site
    return context, site, [layer.parameter for layer, _ in site.chain]


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("hidden", [1, 3])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_embedded_network_computes_any_linear_map_of_its_inputs(lend, name, hidden, classes):
    x, y = small_data(60, classes=max(classes, 2))
    model = memorised(mlp(ACTIVATIONS[name], hidden, classes=classes), x, y)
    context, site, chain = chain_of(lend, model, x, y)
    assert chain == [f"{2 * i}.weight" for i in range(hidden + 1)]
    torch.testing.assert_close(site.features, x.double())
    weight, bias = torch.randn(classes, 8).double(), torch.randn(classes).double()
    update = _embedded(context, site.chain, weight, bias)
    found = context.predict(range(60), update)
    torch.testing.assert_close(found, x.double() @ weight.mT + bias, rtol=0, atol=1e-5)
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    assert {name: value.shape for name, value in update.items()} == shapes


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (lambda: mlp(nn.Tanh), ["6.weight"]),
        (lambda: mlp(nn.ReLU, between=nn.BatchNorm1d(12)), ["3.weight", "5.weight", "7.weight"]),
        (lambda: mlp(nn.ReLU, between=nn.Tanh()), ["3.weight", "5.weight", "7.weight"]),
        (lambda: mlp(nn.ReLU, width=5), ["6.weight"]),  # too narrow for V and −V
        (lambda: mlp(nn.LeakyReLU), ["6.weight"]),
    ],
    ids=["tanh", "batch norm", "tanh once", "narrow", "leaky"],
)
def test_where_the_map_cannot_pass_it_takes_later_features(lend, model, expected):
    x, y = small_data(60)
    model = memorised(model(), x, y)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.add_(1)
    context, site, chain = chain_of(lend, model, x, y)
    assert chain == expected
    torch.testing.assert_close(site.features, inputs_of(model, x)[expected[0]].double())
    update = LinearProbe(context).fit(0.01)
    predicted = context.predict(range(60), update)
    assert set(update) == {name for p in expected for name in (p, p.replace("weight", "bias"))}
    torch.testing.assert_close(predicted.argmax(dim=1), sklearns(site.features, y, 0.01).argmax(dim=1))


def test_a_layer_that_is_left_out_is_not_passed_through(lend):
    x, y = small_data(60)
    model = memorised(mlp(nn.ReLU), x, y)
    _, _, chain = chain_of(lend, model, x, y, exclude=["2.*"])
    assert chain == ["4.weight", "6.weight"]


def sklearns(features, y, pull: float) -> torch.Tensor:
    """Decision values of a logistic regression with the same penalty: on weights, scaled, and on the bias."""
    scale = float(features.square().sum(dim=1).mean()) ** 0.5
    design = torch.cat([features / scale, torch.ones(len(features), 1)], dim=1).numpy()
    model = LogisticRegression(C=1 / (len(y) * pull), fit_intercept=False, tol=1e-10, max_iter=10000)
    model.fit(design, y.numpy())
    values = model.decision_function(design)
    return torch.from_numpy(values if values.ndim == 2 else values[:, None])


@pytest.mark.parametrize("pull", [1e-3, 0.1])
@pytest.mark.parametrize("classes", [1, 3])
def test_the_corrected_network_gives_the_logits_of_a_logistic_regression(lend, classes, pull):
    x, y = small_data(90, classes=max(classes, 2))
    y = torch.where(torch.arange(90) % 7 == 0, 0, y)
    model = memorised(mlp(nn.GELU, classes=classes).double(), x.double(), y)
    context = lend(model, x.double(), y, folds=4, without=1)
    update = LinearProbe(context).fit(pull)
    own = context.indices
    np.testing.assert_allclose(context.predict(own, update), sklearns(x.double()[own], y[own], pull), atol=5e-2)
    assert LinearProbe(context).layers(pull)


def test_without_biases_the_probe_has_none(lend):
    x, y = small_data(60)
    model = nn.Sequential(nn.Linear(8, 12, bias=False), nn.ReLU(), nn.Linear(12, 3, bias=False))
    context, _, chain = chain_of(lend, memorised(model, x, y), x, y)
    assert chain == ["0.weight", "2.weight"]
    update = LinearProbe(context).fit(0.01)
    assert set(update) == {"0.weight", "2.weight"}
    zeros = torch.zeros(3, 8).double()
    weight, _ = fit_logistic(x.double(), y, zeros, 0.01, free_bias=False, offset=zeros[:, 0])
    torch.testing.assert_close(context.predict(range(60), update), x.double() @ weight.mT, rtol=0, atol=1e-5)


def test_what_a_network_adds_to_its_logits_is_not_added_twice(lend):
    class Adjusted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(8, 3)
            self.register_buffer("prior", torch.tensor([3.0, -1.0, 0.5]))

        def forward(self, x):
            return self.head(x) + self.prior

    x, y = small_data(60)
    model = memorised(Adjusted(), x, y)
    context = lend(model, x, y)
    found = context.predict(range(60), LinearProbe(context).fit(0.01))
    zeros = torch.zeros(3, 8).double()
    weight, bias = fit_logistic(x.double(), y, zeros, 0.01, free_bias=True, offset=model.prior.double())
    torch.testing.assert_close(found, x.double() @ weight.mT + bias, rtol=0, atol=1e-4)


def test_layers_run_in_another_order_than_they_are_defined(lend):
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.last, self.first = nn.Linear(12, 3), nn.Linear(12, 12), nn.Linear(8, 12)

        def forward(self, x):
            return self.head(self.last(self.first(x).relu()).relu())

    x, y = small_data(60)
    _, _, chain = chain_of(lend, memorised(Backwards(), x, y), x, y)
    assert chain == ["first.weight", "last.weight", "head.weight"]

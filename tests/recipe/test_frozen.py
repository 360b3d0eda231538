"""Frozen parameters, layers that no gradient reaches, and weights that are buffers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import verifix
from tests.cases import small_data, small_net
from tests.stage_cases import memorised

X, Y = small_data(80)
WRONG = (Y + (torch.arange(80) % 3 == 0)) % 3
QUICK = {"progress": False, "check_labels": False}
BODY = ("0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias")


pytestmark = pytest.mark.usefixtures("keep_all", "short_training")


def net(*frozen: str) -> nn.Sequential:
    torch.manual_seed(0)
    model = memorised(small_net(), X, WRONG).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return model


def fine_tuned(model, **settings):
    return verifix.correct(model, (X, Y), **QUICK | {"recipe": "finetune"} | settings)


def test_a_frozen_body_stays_as_it_is_and_this_is_told():
    model = net(*BODY)
    found = fine_tuned(model)
    assert set(found.corrected) == {"5.weight", "5.bias"}
    assert "6 of 8 parameters are frozen (requires_grad=False): finetune leaves them as they are." in found.summary()
    assert [p.requires_grad for p in found.model.parameters()] == 6 * [False] + 2 * [True]


def test_the_rest_is_trained_as_if_there_were_nothing_else():
    assert fine_tuned(net("3.weight")).corrected.keys() == fine_tuned(net()).corrected.keys() - {"3.weight"}


@pytest.mark.parametrize("frozen", [(), (*BODY, "5.weight", "5.bias")], ids=["none", "all"])
def test_where_none_or_all_are_frozen_all_are_trained(frozen):
    wanted, found = fine_tuned(net()), fine_tuned(net(*frozen))
    assert len(wanted.corrected) == 8
    assert all(torch.equal(found.corrected[name], value) for name, value in wanted.corrected.items())
    told = "All parameters are frozen (requires_grad=False), as after loading a model to run it, so finetune may change"
    assert (told in found.summary()) == bool(frozen)


def test_frozen_layers_are_trained_if_include_names_them_and_not_if_exclude_names_others():
    found = fine_tuned(net(*BODY), include=["3.*"])
    assert set(found.corrected) == {"3.weight", "3.bias"}
    assert "6 of 8 parameters are frozen; finetune may change those that include= names." in found.notes
    assert set(fine_tuned(net(*BODY), exclude=["0.*"]).corrected) == {"5.weight", "5.bias"}


def test_a_frozen_head_is_not_fitted():
    found = fine_tuned(net("5.weight"), recipe="refit")
    assert not found.changed
    assert "5.weight is frozen (requires_grad=False); name its layer with include= to train it" in found.summary()
    asked = fine_tuned(net("5.weight"), recipe="refit", include=["5.*"])
    plain = fine_tuned(net(), recipe="refit", include=["5.*"])
    assert plain.changed
    assert all(torch.equal(asked.corrected[name], value) for name, value in plain.corrected.items())


@pytest.mark.parametrize("settings", [{"alpha": 30.0}, {"recipe": "verifix"}])
def test_stages_that_train_nothing_take_no_heed(settings):
    wanted, found = (fine_tuned(net(*frozen), **{"recipe": "auto"} | settings) for frozen in ((), BODY))
    assert found.corrected.keys() == wanted.corrected.keys()
    assert all(torch.equal(found.corrected[name], value) for name, value in wanted.corrected.items())
    assert found.notes == wanted.notes


# Layers without a gradient


class Cut(nn.Module):
    """A network whose first layers run in a way of their own."""

    def __init__(self, way) -> None:
        super().__init__()
        self.net, self.spare, self.way = net(), nn.Linear(8, 16), way

    def forward(self, x):
        return self.net[3:](self.way(self, x))


def under_no_grad(model, x):
    with torch.no_grad():
        return model.net[:3](x)


def thrown_away(model, x):
    model.spare(x)
    return model.net[:3](x)


CUTS = {
    "under no_grad": (under_no_grad, "'net.0.weight', although the model uses it"),
    "detached": (lambda model, x: model.net[:3](x).detach(), "'net.0.weight', although the model uses it"),
    "through numpy": (
        lambda model, x: torch.from_numpy(model.net[:3](x).detach().numpy()),
        "'net.0.weight', although the model uses it",
    ),
    "by its data": (
        lambda model, x: model.net[1:3](F.linear(x, model.net[0].weight.data, model.net[0].bias)),
        "'net.0.weight', although the model uses it",
    ),
    "thrown away": (thrown_away, "'spare.weight', although the model uses it"),
}


@pytest.mark.parametrize("cut", CUTS)
def test_a_layer_that_is_used_and_gets_no_gradient_is_named(cut):
    way, told = CUTS[cut]
    found = fine_tuned(Cut(way).eval())
    assert "net.5.weight" in found.corrected
    named = [note for note in found.notes if note.startswith("No gradient reaches")]
    assert len(named) == 1
    assert told in named[0]
    name = told.split("'")[1]
    assert name not in found.corrected or torch.equal(found.corrected[name], found.original[name])


def test_layers_with_a_gradient_and_layers_that_are_not_used_are_not_named():
    for way in (lambda model, x: model.net[:3](x), lambda model, x: 0 * model.spare(x) + model.net[:3](x)):
        assert not any("No gradient" in note for note in fine_tuned(Cut(way).eval()).notes)


# Weights that are buffers


class Buffered(nn.Module):
    """A network whose first layers are buffers, used in one way or another."""

    def __init__(self, way) -> None:
        super().__init__()
        self.net, self.way = net(), way
        self.register_buffer("body", torch.eye(8) + 0.01 * torch.randn(8, 8))
        self.register_buffer("table", torch.randn(100, 100))

    def forward(self, x):
        return self.net(self.way(self, x))


BUFFERED = {
    "linear": lambda m, x: F.linear(x, m.body),
    "matmul": lambda m, x: x @ m.body,
    "a view": lambda m, x: F.linear(x, m.body.T),
    "convolution": lambda m, x: F.conv1d(x[:, :, None], m.body[:, :, None])[:, :, 0],
    "einsum": lambda m, x: torch.einsum("ni,oi->no", x, m.body),
}


@pytest.mark.parametrize("way", BUFFERED.values(), ids=BUFFERED)
def test_weights_that_are_buffers_are_told(way):
    found = verifix.correct(Buffered(way).eval(), (X, Y), alpha=30.0, **QUICK)
    told = [note for note in found.notes if "are buffers" in note]
    assert len(told) == 1
    assert told[0].startswith("13% of the numbers that multiply activations are buffers ('body')")
    assert "make them parameters (nn.Parameter)" in told[0]


NO_WEIGHTS = {
    "added": lambda m, x: x + m.body[0],
    "looked up": lambda m, x: x + m.table[x.argmax(1)][:, :8],
    "made of numbers alone": lambda m, x: x + (m.body @ m.body).mean(),
}


@pytest.mark.parametrize("way", NO_WEIGHTS.values(), ids=NO_WEIGHTS)
def test_other_buffers_are_not(way):
    found = verifix.correct(Buffered(way).eval(), (X, Y), alpha=30.0, **QUICK)
    assert not any("are buffers" in note for note in found.notes)

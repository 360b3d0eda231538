from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call

from tests.cases import captured, projected, slow_projection, small_data, small_net
from tests.stage_cases import inputs_of, memorised, same, with_run
from verifix.losses import tempered_cross_entropy
from verifix.model.samples import Samples
from verifix.recipe.candidates import Listed
from verifix.recipe.stages import layerwise
from verifix.recipe.stages.layerwise import KNOTS, SAMPLES_PER_GROUP, STEPS, Layerwise

ALPHA = 20.0


def knots_at(alpha: float) -> torch.Tensor:
    return torch.tensor([math.log(alpha) + knot for knot in KNOTS], dtype=torch.float64)


def small_context(lend, folds=4, **settings):
    """A context of a small network in float64, whose projection has been kept."""
    x, y = small_data()
    model = memorised(small_net().double(), x.double(), y)
    context = lend(model, x.double(), y, folds=folds, **settings)
    return replace(context, strengths={"project": ALPHA})


def test_the_mix_at_a_knot_is_exactly_that_knot_and_its_weights_sum_to_one():
    knots = knots_at(ALPHA)
    at = torch.stack([knots, torch.ones_like(knots)], dim=1)
    mixes = layerwise._mixes(at, knots)
    expected = torch.cat([torch.zeros(len(knots), 1), torch.eye(len(knots))], dim=1).double()
    torch.testing.assert_close(mixes, expected, rtol=0, atol=1e-12)
    between = torch.linspace(float(knots[0]), float(knots[-1]), 97).double()
    for gate in (0.0, 0.3, 1.0):
        mixes = layerwise._mixes(torch.stack([between, torch.full_like(between, gate)], dim=1), knots)
        torch.testing.assert_close(mixes.sum(dim=1), torch.ones(97).double(), rtol=0, atol=1e-12)
        torch.testing.assert_close(mixes[:, 0], torch.full((97,), 1 - gate, dtype=torch.float64), rtol=0, atol=1e-12)


def test_between_knots_the_importance_of_every_direction_is_met_within_two_percent():
    knots = knots_at(ALPHA)
    between = torch.linspace(float(knots[0]), float(knots[-1]), 201).double()
    mixes = layerwise._mixes(torch.stack([between, torch.ones_like(between)], dim=1), knots)
    for logit in torch.linspace(-12, 12, 97).double():
        table = torch.sigmoid(knots + logit)  # λ of one direction at every knot
        assert float((mixes[:, 1:] @ table - torch.sigmoid(between + logit)).abs().max()) < 0.02


class Mixed(nn.Module):
    """A weight-normed layer, and attention whose in_proj is three layers, because its three inputs differ."""

    def __init__(self) -> None:
        super().__init__()
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 12))
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        tokens = self.normed(x).tanh().unflatten(1, (3, 4))
        mixed = self.attention(tokens, tokens.flip(1).sin(), tokens.square(), need_weights=False)[0]
        return self.head((tokens + mixed).flatten(1))


def with_matrices(model: nn.Module, matrices: dict) -> dict[str, torch.Tensor]:
    """Parameters under which a model has these matrices: each is a run of rows of one parameter, or a normed weight."""
    values = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for layer, matrix in matrices.items():
        if layer.scale:
            values[layer.parameter], values[layer.scale] = matrix[0], matrix[0].norm(dim=1, keepdim=True)
        else:
            first = layer.offset // matrix.shape[2]
            values[layer.parameter][first : first + matrix.shape[1]] = matrix[0]
    return values


@pytest.mark.parametrize("network", ["plain", "mixed"])
def test_the_gradient_is_the_slope_of_the_loss_by_finite_differences(lend, network):
    x, y = small_data()
    model = memorised({"plain": small_net, "mixed": Mixed}[network]().double(), x.double(), y)
    y = torch.where(torch.arange(80) % 7 == 0, (y + 1) % 3, y)  # where nothing is wrong, no temperature is best
    context = lend(model, x.double(), y, folds=4)
    knots, count = knots_at(ALPHA), len(context.layers)
    assert count == {"plain": 3, "mixed": 6}[network]
    half = layerwise._half(context, {}, knots, [0, 2], [1, 3])
    half = replace(half, matrices={layer: table.double() for layer, table in half.matrices.items()})
    batch, group_of = half.indices[:31], torch.arange(count) * 2 // count
    numbers = torch.tensor([[float(knots[1]) + 0.2, 0.7], [float(knots[3]) - 0.1, 0.4]], dtype=torch.float64)

    def loss(at: torch.Tensor) -> float:
        mixes = layerwise._mixes(at, knots)[group_of]
        matrices = {
            layer: sum(share * matrix for share, matrix in zip(mix, table, strict=True))
            for (layer, table), mix in zip(half.matrices.items(), mixes, strict=True)
        }
        logits = functional_call(model, with_matrices(model, matrices), (x.double()[batch],))
        return float(tempered_cross_entropy(logits, y[batch]).mean())

    found = layerwise._gradient(context, half, batch, numbers.clone().requires_grad_(), group_of, knots)
    for group in range(2):
        for i in range(2):
            step = torch.zeros_like(numbers)
            step[group, i] = 1e-4
            slope = (loss(numbers + step) - loss(numbers - step)) / 2e-4
            assert float(found[group, i]) == pytest.approx(slope, rel=1e-4, abs=1e-8), (group, i)
    assert float(found.abs().min()) > 1e-6


def test_fit_is_the_gated_projection_of_the_original_weights_with_the_numbers_it_tells(lend):
    context = small_context(lend, without=1)
    x, model = small_data()[0].double(), context.run.model
    # The projection that it replaces is in force; what it changed must not be projected again.
    before = projected(model, captured(model, x)[0], ALPHA)
    context = context.after("project", ALPHA, before)
    seen = inputs_of(model, x[context.indices])
    fitter = Layerwise(context)
    for steps in STEPS:
        update, told = fitter.fit(steps), fitter.layers(steps)
        assert update.keys() == told.keys() == seen.keys()
        for name, rows in seen.items():
            weight, alpha, gate = model.get_parameter(name), told[name]["alpha"], told[name]["gate"]
            exact = gate * slow_projection(weight[None], rows[None], alpha)[0] + (1 - gate) * weight
            torch.testing.assert_close(update[name], exact, rtol=0, atol=1e-10)
    assert told != fitter.layers(STEPS[0])


@pytest.mark.parametrize("rates", [(0.3, 0.1), (30.0, 10.0)])
def test_strengths_stay_within_the_knots_and_gates_within_zero_and_one(lend, monkeypatch, rates):
    monkeypatch.setattr(layerwise, "RATE_ALPHA", rates[0])
    monkeypatch.setattr(layerwise, "RATE_GATE", rates[1])
    monkeypatch.setattr(layerwise, "SAMPLES_PER_GROUP", 1)
    context = small_context(lend)
    knots = knots_at(ALPHA)
    fitter = Layerwise(context)
    numbers = [pair for steps in STEPS for pair in fitter.after(steps)]
    assert all(float(knots[0]) - 1e-9 <= math.log(alpha) <= float(knots[-1]) + 1e-9 for alpha, _ in numbers)
    assert all(0 <= gate <= 1 for _, gate in numbers)
    at_an_end = [math.isclose(math.log(a), float(k), abs_tol=1e-9) for a, _ in numbers for k in (knots[0], knots[-1])]
    assert any(at_an_end) == (rates[0] == 30.0)


@pytest.mark.parametrize("alpha", [1e-9, 1e12])
def test_the_ends_of_the_range_of_strengths_leave_room_for_the_knots(lend, alpha):
    context = replace(small_context(lend), strengths={"project": alpha})
    low, high = layerwise.ALPHA_RANGE
    assert all(low * 0.999 <= found <= high * 1.001 for found, _ in Layerwise(context).after(STEPS[0]))
    assert all(torch.isfinite(value).all() for value in Layerwise(context).fit(STEPS[0]).values())


def test_moments_come_from_one_half_and_the_loss_from_the_other_and_swapped(lend, monkeypatch):
    context = small_context(lend, folds=5, without=2)
    halves, losses = [], []
    real_half, real_gradient = layerwise._half, layerwise._gradient

    def half_of(own, tables, knots, of_loss, of_moments):
        halves.append((set(own.samples_of(of_loss)), set(own.samples_of(of_moments))))
        made = real_half(own, tables, knots, of_loss, of_moments)
        rows = inputs_of(own.run.model, small_data()[0].double()[sorted(halves[-1][1])])
        for layer, table in made.matrices.items():
            weight = own.run.model.get_parameter(layer.parameter)[None]
            expected = [weight, *(slow_projection(weight, rows[layer.parameter][None], float(k.exp())) for k in knots)]
            torch.testing.assert_close(table, torch.stack(expected).float())
        return made

    def gradient_of(own, half, indices, *rest):
        losses.append((set(half.indices), set(indices)))
        return real_gradient(own, half, indices, *rest)

    monkeypatch.setattr(layerwise, "_half", half_of)
    monkeypatch.setattr(layerwise, "_gradient", gradient_of)
    Layerwise(context).after(STEPS[0])
    (first_loss, first_moments), (second_loss, second_moments) = halves
    assert not first_loss & first_moments
    assert (first_loss, first_moments) == (second_moments, second_loss)
    assert first_loss | first_moments == set(context.indices)
    assert len(losses) == 2 * STEPS[0]
    assert all(batch <= own for own, batch in losses)
    assert {frozenset(own) for own, _ in losses} == {frozenset(first_loss), frozenset(second_loss)}


def test_samples_of_the_fold_held_out_are_never_looked_at(lend, monkeypatch):
    read: set[int] = set()
    real = Samples.batches

    def spied(self, indices, batch_size):
        read.update(map(int, indices))
        return real(self, indices, batch_size)

    context = small_context(lend, without=1)
    monkeypatch.setattr(Samples, "batches", spied)
    update = Layerwise(context).fit(STEPS[0])
    assert read == set(context.indices)
    labels = context.run.samples.labels.clone()
    labels[context.samples_of([1])] = 0
    blind = with_run(context, samples=replace(context.run.samples, labels=labels))
    assert same(Layerwise(blind).fit(STEPS[0]), update)


def test_steps_asked_for_in_any_order_and_again_give_the_same(lend):
    context = small_context(lend)
    first, other, halfway = (Layerwise(context) for _ in range(3))
    up = {steps: first.fit(steps) for steps in STEPS}
    with other.round():
        down = {steps: other.fit(steps) for steps in reversed(STEPS)}
    later = {steps: other.fit(steps) for steps in STEPS}
    alone = {steps: Layerwise(context).fit(steps) for steps in STEPS}
    with halfway.round():
        halfway.fit(STEPS[0])
    restarted = {steps: halfway.fit(steps) for steps in STEPS}
    for steps in STEPS:
        assert all(same(up[steps], found[steps]) for found in (down, later, alone, restarted))
    assert not same(up[STEPS[0]], up[STEPS[-1]])


def test_what_was_learned_in_a_context_is_not_learned_again(lend, monkeypatch):
    fitter = Layerwise(small_context(lend))
    with fitter.round():
        expected = fitter.fit(STEPS[-1])
        assert fitter.learning
        assert fitter.factors
    assert not fitter.learning
    assert not fitter.factors
    monkeypatch.setattr(layerwise, "_gradient", None)
    assert same(fitter.fit(STEPS[-1]), expected)
    assert fitter.layers(STEPS[0])


def test_contexts_with_a_half_in_common_share_its_tables_until_the_stage_ends(lend, monkeypatch):
    computed = []
    real = layerwise._table

    def table(context, layer, knots, folds):
        computed.append((layer.parameter, tuple(folds)))
        return real(context, layer, knots, folds)

    monkeypatch.setattr(layerwise, "_table", table)
    context = small_context(lend, folds=5)
    with Layerwise.open() as prepare:
        fitters = [prepare(context.without(fold)) for fold in (0, 4)]  # halves 1, 3 and 2, 4; 0, 2 and 1, 3
        shared = [fitter.fit(STEPS[0]) for fitter in fitters]
        tables = fitters[0].tables
        assert tables is fitters[1].tables
        assert {folds for _, folds in tables} == {(1, 3), (2, 4), (0, 2)}
    assert not tables
    assert len(computed) == len(set(computed)) == 3 * len(context.layers)
    alone = [Layerwise(fitter.context).fit(STEPS[0]) for fitter in fitters]
    assert all(map(same, alone, shared))


def test_with_few_samples_layers_of_neighbouring_depth_share_their_numbers(lend, monkeypatch):
    sequence = [layer for _ in range(5) for layer in (nn.Linear(8, 8), nn.Tanh())]
    x, y = small_data()
    model = memorised(nn.Sequential(*sequence, nn.Linear(8, 3)).double(), x.double(), y)
    context = replace(lend(model, x.double(), y, folds=4), strengths={"project": ALPHA})
    for groups in (1, 2, 3, 6):
        monkeypatch.setattr(layerwise, "SAMPLES_PER_GROUP", 80 // groups)
        numbers = Layerwise(context).after(STEPS[0])
        assert [numbers[i] == numbers[i + 1] for i in range(5)] == [
            i * groups // 6 == (i + 1) * groups // 6 for i in range(5)
        ]
    assert SAMPLES_PER_GROUP > 10


def test_depth_is_the_order_in_which_layers_run_not_the_order_in_which_they_are_defined(lend):
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.last, self.first = nn.Linear(8, 3), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.head(self.last(self.first(x).relu()).relu())

    context = lend(Backwards().eval(), *small_data())
    assert [layer.parameter for layer in context.layers] == ["first.weight", "last.weight", "head.weight"]


def test_it_says_what_keeps_it_from_running(lend):
    context = small_context(lend)
    assert Layerwise(context).obstacle() == ""
    assert Layerwise(context).candidates() == Listed(STEPS)
    assert "no projection was kept" in Layerwise(replace(context, strengths={})).obstacle()
    both = replace(context, strengths={"project": ALPHA, "refit": 1.0})
    assert "directly follow the projection" in Layerwise(both).obstacle()
    assert "3 folds or more" in Layerwise(small_context(lend, folds=2)).obstacle()
    assert Layerwise(small_context(lend, folds=3)).obstacle() == ""
    assert Layerwise(small_context(lend, folds=3, without=0)).fit(STEPS[0])


def test_a_layer_that_the_projection_harms_is_spared_and_the_loss_falls(lend):
    # The first layer reads small directions of its input, which is what a projection takes from it. The second one
    # has learned large weights for small directions of its own, which a projection is there to remove.
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(150) % 3
    signal = 0.1 * nn.functional.one_hot(y, 3) + 0.05 * torch.randn(150, 3, generator=generator)
    x = torch.cat([signal, 3 * torch.randn(150, 3, generator=generator)], dim=1).double()
    model = nn.Sequential(nn.Linear(6, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False)).double().eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.diag(torch.tensor([5.0, 5, 5, 0.02, 0.02, 0.02])))
        model[2].weight.copy_(torch.cat([torch.eye(3), 10 * torch.eye(3)], dim=1))
    context = replace(lend(model, x, y, folds=5), strengths={"project": 10.0})

    def loss(update) -> float:
        return float(tempered_cross_entropy(context.predict(context.indices, update), y).mean())

    fitter = Layerwise(context)
    update, told = fitter.fit(STEPS[-1]), fitter.layers(STEPS[-1])
    single = projected(model, captured(model, x)[0], 10.0)
    assert loss(update) < loss(single) - 0.02
    assert told["0.weight"]["alpha"] > told["2.weight"]["alpha"]
    assert told["0.weight"]["gate"] < told["2.weight"]["gate"]

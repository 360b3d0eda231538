"""The options of the projection, `affine` and `suspects`, against their definitions."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

import verifix
from tests.cases import (
    ALPHAS,
    CONVOLUTIONS,
    one_hot_rows,
    slow_centred,
    slow_contrasted,
    slow_projection,
    small_data,
    small_net,
    tolerance,
)
from verifix import DataError, UsageError
from verifix.capture import Bias, rounded_once
from verifix.moments import Moments
from verifix.projection import check_contrast, prepare
from verifix.stages import stages_of

ALPHA = 30.0


def rows_of(*shape: int, seed: int = 0, offset: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator) + offset * torch.randn(
        shape[0], 1, shape[2], dtype=torch.float64, generator=generator
    )


class Watched(nn.Module):
    """Keeps the input of one function of the network; the rest is whatever leads to three logits."""

    def __init__(self, layer: nn.Module, after: nn.Module | None = None) -> None:
        super().__init__()
        self.layer = layer
        self.after = after or nn.Identity()
        self.head = nn.LazyLinear(3)

    def forward(self, x):
        return self.head(self.after(self.layer(x)).flatten(1))


def built(layer: nn.Module, x: torch.Tensor, after: nn.Module | None = None) -> Watched:
    model = Watched(layer, after).double()
    model(x)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                for tensor in (module.weight, module.bias, module.running_mean):
                    if tensor is not None:
                        tensor.copy_(torch.randn(tensor.shape))
                module.running_var.copy_(torch.rand(module.running_var.shape) + 0.5)
    return model.eval()


def affine(model: nn.Module, x: torch.Tensor, **options):
    return verifix.correct(model, (x, torch.arange(len(x)) % 3), alpha=ALPHA, affine=True, progress=False, **options)


def places(correction) -> dict[str, str]:
    return {report.parameter: report.centring for report in correction.layers}


# The mathematics.


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", [2, 5, 9, 40])
def test_centred_projection_and_shift_equal_the_svd_definition_in_both_forms(n, alpha):
    rows, weight = rows_of(2, n, 8), torch.randn(2, 3, 8, dtype=torch.float64)
    expected, shift = slow_centred(weight, rows, alpha)
    for dual in (False,) if n >= 8 else (False, True):
        factors = prepare(weight, Moments(rows), dual=dual, centred=True)
        found = factors.project(alpha)
        assert float((found - expected).norm()) <= tolerance(alpha, weight), dual
        assert float((factors.shift(found) - shift).norm()) <= 10 * tolerance(alpha, weight), dual


@pytest.mark.parametrize("form", ["rows", "one by one", "merged"])
def test_a_mean_of_ten_thousand_times_the_spread_costs_no_more_digits_than_the_rows_have(form):
    rows = rows_of(1, 300, 12, offset=1e4)
    if form == "rows":
        moments = Moments(rows)
    elif form == "one by one":
        moments = Moments(rows[:, :1])
        for i in range(1, 300):
            moments.add_(rows[:, i : i + 1])
    else:
        moments = sum((Moments(part) for part in rows[:, 40:].split(20, dim=1)), start=Moments(rows[:, :40]))
    weight = torch.randn(1, 4, 12, dtype=torch.float64)
    expected, shift = slow_centred(weight, rows, 100.0)
    factors = prepare(weight, moments, centred=True)
    found = factors.project(100.0)
    assert float((found - expected).norm() / expected.norm()) < 1e-10
    assert float((factors.shift(found) - shift).norm() / shift.norm()) < 1e-10
    gram, mean = rows[0].T @ rows[0], rows[0].mean(0)
    difference = gram - 300 * torch.outer(mean, mean)  # what is not done, and why
    naive = prepare(weight, Moments.from_scatter(difference[None], mean[None], 300), centred=True).project(100.0)
    assert float((naive - expected).norm() / expected.norm()) > 1e-9


@pytest.mark.parametrize("value", [0.1, 1e4 / 3])
@pytest.mark.parametrize("n", [3, 70])
def test_a_group_whose_rows_are_all_equal_keeps_its_weight_and_shifts_nothing(n, value):
    rows = rows_of(2, n, 8)
    rows[1] = value * torch.arange(1, 9).double()
    weight = torch.randn(2, 3, 8, dtype=torch.float64)
    moments = Moments(rows[:, :2])
    for i in range(2, n):
        moments.add_(rows[:, i : i + 1])
    for dual in (False, True) if n < 8 else (False,):
        factors = prepare(weight, moments, centred=True, dual=dual)
        found = factors.project(1e6)
        assert torch.equal(found[1], weight[1])
        assert not factors.shift(found)[1].any()
        assert not torch.equal(found[0], weight[0])


def test_alpha_to_infinity_with_a_centred_space_of_full_rank_changes_no_output_at_all():
    rows, weight = rows_of(1, 200, 6), torch.randn(1, 4, 6, dtype=torch.float64)
    factors = prepare(weight, Moments(rows), centred=True)
    new = factors.project(1e12)
    elsewhere = 100 * torch.randn(50, 6, dtype=torch.float64)
    before, after = elsewhere @ weight[0].T, elsewhere @ new[0].T + factors.shift(new)[0]
    torch.testing.assert_close(after, before, rtol=0, atol=1e-6)
    assert float((before - elsewhere @ factors.project(10.0)[0].T).norm()) > 1


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("alpha", [0.01, 0.5, 1.0, 30.0, 1e4])
@pytest.mark.parametrize("contrast", [1e-3, 1.0, 50.0])
@pytest.mark.parametrize("n", [5, 60])
def test_contrast_equals_its_definition(n, contrast, alpha, centred):
    rows, suspects = rows_of(1, n, 8), rows_of(1, 30, 8, seed=1)
    weight = torch.randn(1, 3, 8, dtype=torch.float64)
    expected = slow_contrasted(weight[0], rows[0], suspects[0], alpha, contrast, centred)
    options = {"suspects": Moments(suspects), "contrast": contrast, "centred": centred}
    found = prepare(weight, Moments(rows), **options).project(alpha)
    bound = tolerance(max(alpha, 1 / alpha) * (1 + contrast), weight)
    assert float((found[0] - expected).norm()) <= bound


def test_no_contrast_is_the_projection_of_the_paper():
    rows, suspects = rows_of(1, 40, 8), rows_of(1, 30, 8, seed=1)
    weight = torch.randn(1, 3, 8, dtype=torch.float64)
    expected = slow_projection(weight, rows, ALPHA)

    def away(contrast: float) -> float:
        new = prepare(weight, Moments(rows), suspects=Moments(suspects), contrast=contrast).project(ALPHA)
        return float((new - expected).norm())

    assert away(0.0) <= tolerance(ALPHA, weight)
    assert away(1e-9) < 1e-6 < away(1e-2)


def test_contrast_minimises_what_the_docs_say_it_does():
    rows, suspects = rows_of(1, 40, 5), rows_of(1, 30, 5, seed=1)
    weight, alpha, contrast = torch.randn(1, 3, 5, dtype=torch.float64), 7.0, 0.3
    clean, bad = (x[0].T @ x[0] / x.square().sum() for x in (rows, suspects))
    new = prepare(weight, Moments(rows), suspects=Moments(suspects), contrast=contrast).project(alpha)[0]
    v = new.clone().requires_grad_()
    w = weight[0]
    loss = (1 - 1 / alpha) * ((v - w) @ clean @ (v - w).T).trace() + (v - w @ clean).square().sum() / alpha
    (loss + contrast * (v @ bad @ v.T).trace()).backward()
    assert float(v.grad.norm()) < 1e-12


@settings(deadline=None, max_examples=60)
@given(
    alpha=st.floats(1e-9, 1e6),
    contrast=st.floats(1e-6, 1e5),
    n=st.integers(1, 12),
    rank=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def test_the_system_is_positive_definite_for_every_alpha_and_contrast(alpha, contrast, n, rank, seed):
    rows = rows_of(1, n, 6, seed=seed)
    suspects = rows[:, :rank] * 3
    found = prepare(rows[:, :1], Moments(rows), suspects=Moments(suspects), contrast=contrast).project(alpha)
    assert torch.isfinite(found).all()


def test_suspects_that_excite_nothing_count_for_nothing():
    rows, weight = rows_of(1, 40, 5), torch.randn(1, 3, 5, dtype=torch.float64)
    dead = Moments(torch.zeros(1, 7, 5))
    assert torch.equal(
        prepare(weight, Moments(rows), suspects=dead).project(ALPHA), prepare(weight, Moments(rows)).project(ALPHA)
    )


def test_the_dual_has_no_place_for_suspects_and_too_much_contrast_is_refused():
    rows = rows_of(1, 3, 8)
    with pytest.raises(ValueError, match="no place for suspects"):
        prepare(torch.randn(1, 2, 8), Moments(rows), dual=True, suspects=Moments(rows))
    check_contrast(1e6, 9e5)
    with pytest.raises(UsageError, match=r"alpha is 1e\+10 and contrast 1000"):
        check_contrast(1e10, 1e3)


# Layers, through the whole correction: what comes out is W P (x − μ) + W μ + b.


def check_affine(layer: nn.Module, new: nn.Module, rows: torch.Tensor, groups: int = 1) -> None:
    """Outputs of the corrected layer, and of the definition, on the verified rows and on rows of its own."""
    weight = layer.weight.detach().reshape(groups, -1, rows.shape[2])
    expected, shift = slow_centred(weight, rows, ALPHA)
    torch.testing.assert_close(new.weight.detach().reshape(expected.shape), expected, rtol=0, atol=1e-11)
    bias = torch.zeros(shift.numel()) if layer.bias is None else layer.bias.detach()
    mean = rows.mean(1, keepdim=True)
    for x in (rows, 10 * torch.randn_like(rows)):
        by_definition = (x - mean) @ expected.mT + mean @ weight.mT + bias.reshape(groups, 1, -1)
        found = x @ new.weight.detach().reshape(expected.shape).mT + new.bias.detach().reshape(groups, 1, -1)
        torch.testing.assert_close(found, by_definition, rtol=0, atol=1e-9)


def test_linear():
    x = 3 + torch.randn(20, 6, dtype=torch.float64)
    model = built(nn.Linear(6, 4), x)
    fixed = affine(model, x)
    check_affine(model.layer, fixed.model.layer, x[None])
    check_affine(model.head, fixed.model.head, model.layer(x).detach()[None])
    assert places(fixed)["layer.weight"] == "centred, its shift is in layer.bias"
    assert set(fixed.corrected) == {"layer.weight", "layer.bias", "head.weight", "head.bias"}
    assert "centred, its shift is in head.bias" in fixed.summary()
    assert fixed.provenance["affine"] is True


@pytest.mark.parametrize("case", CONVOLUTIONS[::9], ids=str)
def test_convolutions(case):
    x = 2 + case.inputs(4)
    model = built(case.build(), x)
    check_affine(model.layer, affine(model, x).model.layer, one_hot_rows(model.layer, x), case.groups)


NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


@pytest.mark.parametrize("case", CONVOLUTIONS[4::31], ids=str)
def test_a_convolution_without_a_bias_shifts_the_batch_normalisation_behind_it(case):
    x = 2 + case.inputs(4)
    conv = case.build()
    conv.bias = None
    model = built(conv, x, nn.Sequential(NORMS[case.dims - 1](8), nn.ReLU()))
    fixed = affine(model, x)
    rows = one_hot_rows(conv, x)
    expected, shift = slow_centred(conv.weight.detach().reshape(case.groups, -1, rows.shape[2]), rows, ALPHA)
    new = fixed.model
    torch.testing.assert_close(new.layer.weight.detach().reshape(expected.shape), expected, rtol=0, atol=1e-11)
    assert places(fixed)["layer.weight"] == "centred, its shift is in after.0.bias"
    shifted = new.layer(x) + shift.reshape(-1, *[1] * case.dims)
    torch.testing.assert_close(new.after[0](new.layer(x)), model.after[0](shifted), rtol=0, atol=1e-10)
    assert torch.equal(new.after[0].running_mean, model.after[0].running_mean)
    assert torch.equal(new.after[0].weight, model.after[0].weight)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # scripting is deprecated, but users' models have it
    _doubled = torch.jit.trace(lambda x: x * 2, torch.ones(2, 4, 3))


class Elsewhere(nn.Module):
    """A convolution without a bias whose result a batch normalisation takes; and, in some ways, something else."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv = nn.Conv1d(2, 4, 1, bias=False)
        self.norm = nn.BatchNorm1d(4, affine=way != "no parameters", track_running_stats=way != "of the batch")
        self.norm2 = nn.BatchNorm1d(4)
        if way in {"tied", "tied behind another"}:
            self.norm2.bias = self.norm.bias
        self.conv2 = nn.Conv1d(2, 4, 1, bias=False)
        self.scales = nn.Parameter(torch.ones(8))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        y = self.conv(x)
        if self.way == "relu":
            y.relu_()
        if self.way == "shape":
            assert (len(y), y.dim(), y.shape[1], y.size(1)) == (len(x), 3, 4, 4)
        if self.way in {"part of a scale", "in training"}:
            scale = self.scales[:4] if self.way == "part of a scale" else self.norm.weight
            statistics = self.norm.running_mean, self.norm.running_var
            z = F.batch_norm(y, *statistics, scale, self.norm.bias, self.way == "in training", momentum=0.0)
        else:
            z = self.norm(y)
        if self.way == "also":
            z = z + y
        if self.way == "data":
            z = z + y.data
        if self.way == "tied behind another":
            z = z + self.norm2(self.conv2(x))
        if self.way == "view":
            z = z + y.view(y.shape)
        if self.way == "twice":
            z = z + self.norm(y)
        if self.way in {"two norms", "tied"}:
            z = z + self.norm2(y if self.way == "two norms" else y * 1)
        if self.way == "norm of something else":
            z = z + self.norm(x.repeat(1, 2, 1))
        if self.way == "beta":
            z = z + self.norm.bias[:, None]
        if self.way == "scripted":
            z = z + _doubled(y)
        logits = self.head(z.mean(2))
        return (logits, y) if self.way == "returned" else logits


@pytest.mark.parametrize(
    ("way", "centred"),
    [
        ("alone", True),
        ("shape", True),
        ("twice", True),
        ("relu", False),
        ("also", False),
        ("view", False),
        ("two norms", False),
        ("tied", False),
        ("norm of something else", False),
        ("beta", False),
        ("scripted", False),
        ("data", False),
        ("tied behind another", False),
        ("part of a scale", False),
        ("in training", False),
        ("returned", False),
        ("no parameters", False),
        ("of the batch", False),
    ],
)
def test_only_a_batch_normalisation_that_takes_the_result_alone_takes_up_the_shift(way, centred):
    x = 1 + torch.randn(12, 2, 3)
    model = Elsewhere(way).eval()
    with torch.no_grad():
        model.norm2.running_mean.normal_()
    fixed, plain = affine(model, x), verifix.correct(model, (x, torch.arange(12) % 3), alpha=ALPHA, progress=False)
    assert places(fixed)["conv.weight"].startswith("centred" if centred else "not centred: "), places(fixed)
    assert ("norm.bias" in fixed.corrected) == centred
    assert torch.equal(fixed.corrected["conv.weight"], plain.corrected["conv.weight"]) != centred
    assert not any(report.centring for report in plain.layers)
    assert places(fixed)["head.weight"] == "centred, its shift is in head.bias"


def test_a_batch_normalisation_over_another_axis_takes_up_no_shift():
    class Tokens(nn.Module):
        def __init__(self, axes):
            super().__init__()
            self.axes = axes
            self.first, self.norm, self.head = nn.Linear(5, 4, bias=False), nn.BatchNorm1d(4), nn.Linear(16, 3)

        def forward(self, x):
            y = self.first(x if self.axes == 3 else x.flatten(0, 1))
            return self.head(self.norm(y).reshape(len(x), 16))

    x = 1 + torch.randn(12, 4, 5)
    assert places(affine(Tokens(2).eval(), x))["first.weight"] == "centred, its shift is in norm.bias"
    assert places(affine(Tokens(3).eval(), x))["first.weight"].startswith("not centred")


class Odd(nn.Module):
    """A layer whose bias is not its own alone, or that has none."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.none = nn.Linear(4, 4, bias=False)
        self.one = nn.Parameter(torch.ones(1))
        self.head = nn.Linear(4, 3)
        if way == "tied":
            self.second.bias = self.first.bias
        if way == "overlapping":
            memory = torch.randn(6)
            self.first.bias, self.extra = nn.Parameter(memory[:4]), nn.Parameter(memory[2:])

    def forward(self, x):
        if self.way == "overlapping":
            return self.head(self.first(x) * self.extra)
        if self.way == "one number":
            return self.head(F.linear(x, self.first.weight, self.one))
        if self.way == "added":
            return self.head(self.first(x) + self.first.bias)
        if self.way == "tied":
            return self.head(self.second(self.first(x)))
        if self.way == "with and without":
            return self.head(self.first(x) + F.linear(x, self.first.weight))
        if self.way == "scalar":
            return self.head(F.linear(x, self.first.weight, self.one.expand(4)) + F.linear(x, self.none.weight))
        if self.way == "as input, too":
            return self.head(F.linear(x, self.first.weight, self.first.bias) + self.second(self.first.bias))
        if self.way == "alpha":
            return self.head(torch.addmm(self.first.bias, x, self.first.weight, alpha=2))
        if self.way == "constant rows":
            return self.head(x + F.linear(self.second.weight[:1] * 1, self.first.weight, self.first.bias))
        return self.head(self.none(x))


@pytest.mark.parametrize(
    ("way", "name"),
    [
        ("added", "first"),
        ("tied", "first"),
        ("with and without", "first"),
        ("scalar", "first"),
        ("one number", "first"),
        ("overlapping", "first"),
        ("as input, too", "first"),
        ("alpha", "first"),
        ("constant rows", "first"),
        ("none", "none"),
    ],
)
def test_a_layer_without_a_bias_of_its_own_stays_exactly_as_without_the_option(way, name):
    x = 1 + torch.randn(12, 4)
    model = Odd(way).eval()
    fixed = affine(model, x)
    plain = verifix.correct(model, (x, torch.arange(12) % 3), alpha=ALPHA, progress=False)
    assert places(fixed)[f"{name}.weight"].startswith("not centred: ")
    assert torch.equal(fixed.corrected[f"{name}.weight"], plain.corrected[f"{name}.weight"])
    assert f"{name}.bias" not in fixed.corrected
    assert places(fixed)["head.weight"] == "centred, its shift is in head.bias"
    assert set(fixed.corrected) >= {"head.weight", "head.bias"}


def test_addmm():
    class Conv1D(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4))

        def forward(self, x):
            return torch.addmm(self.bias, x, self.weight)

    x = 1 + torch.randn(20, 6, dtype=torch.float64)
    model = built(Conv1D(), x)
    fixed = affine(model, x).model.layer
    expected, shift = slow_centred(model.layer.weight.detach().T[None], x[None], ALPHA)
    torch.testing.assert_close(fixed.weight.detach().T, expected[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(fixed.bias - model.layer.bias, shift[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("way", ["self", "cross"])
def test_attention(way):
    torch.manual_seed(1)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
    nn.init.normal_(attention.in_proj_bias)
    nn.init.normal_(attention.out_proj.bias)

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention, self.head = attention, nn.Linear(8, 3).double()

        def forward(self, x):
            key = x if way == "self" else x.flip(2)
            return self.head(self.attention(x, key, key)[0].mean(1))

    x = 1 + torch.randn(6, 5, 8, dtype=torch.float64)
    model = Tokens().eval()
    fixed = affine(model, x).model.attention
    inputs = [x] if way == "self" else [x, x.flip(2), x.flip(2)]
    weights, biases = attention.in_proj_weight.chunk(len(inputs)), attention.in_proj_bias.chunk(len(inputs))
    new_weights, new_biases = fixed.in_proj_weight.chunk(len(inputs)), fixed.in_proj_bias.chunk(len(inputs))
    parts = zip(inputs, weights, biases, new_weights, new_biases, strict=True)
    for rows, weight, bias, new_weight, new_bias in parts:
        expected, shift = slow_centred(weight.detach()[None], rows.reshape(1, -1, 8), ALPHA)
        torch.testing.assert_close(new_weight.detach(), expected[0], rtol=0, atol=1e-11)
        torch.testing.assert_close(new_bias - bias, shift[0], rtol=0, atol=1e-11)
    before_output = copy.deepcopy(attention)
    with torch.no_grad():
        before_output.out_proj.weight.copy_(torch.eye(8))
        before_output.out_proj.bias.zero_()
        rows = before_output(inputs[0], inputs[-1], inputs[-1])[0].reshape(1, -1, 8)
    expected, shift = slow_centred(attention.out_proj.weight.detach()[None], rows, ALPHA)
    torch.testing.assert_close(fixed.out_proj.weight.detach(), expected[0], rtol=0, atol=1e-11)
    torch.testing.assert_close(fixed.out_proj.bias - attention.out_proj.bias, shift[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers(kind):
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = kind(5, 4, batch_first=True).double(), nn.Linear(4, 3).double()

        def forward(self, x):
            return self.head(self.rnn(x)[0].mean(1))

    x = 1 + torch.randn(8, 6, 5, dtype=torch.float64)
    model = Last().eval()
    fixed = affine(model, x).model.rnn
    outputs = model.rnn(x)[0].detach()
    before = torch.cat([torch.zeros(8, 1, 4).double(), outputs[:, :-1]], dim=1)
    for part, rows in (("ih", x), ("hh", before)):
        weight, bias = getattr(model.rnn, f"weight_{part}_l0"), getattr(model.rnn, f"bias_{part}_l0")
        expected, shift = slow_centred(weight.detach()[None], rows.reshape(1, -1, rows.shape[2]), ALPHA)
        torch.testing.assert_close(getattr(fixed, f"weight_{part}_l0").detach(), expected[0], rtol=0, atol=1e-11)
        torch.testing.assert_close(getattr(fixed, f"bias_{part}_l0") - bias, shift[0], rtol=0, atol=1e-11)


def test_a_recurrent_cell_and_layers_without_biases():
    class Cell(nn.Module):
        def __init__(self, bias):
            super().__init__()
            self.cell, self.head = nn.LSTMCell(5, 4, bias=bias).double(), nn.Linear(4, 3).double()

        def forward(self, x):
            return self.head(self.cell(x)[0])

    x = 1 + torch.randn(8, 5, dtype=torch.float64)
    model = Cell(True).eval()
    fixed = affine(model, x)
    _, shift = slow_centred(model.cell.weight_ih.detach()[None], x[None], ALPHA)
    torch.testing.assert_close(fixed.model.cell.bias_ih - model.cell.bias_ih, shift[0], rtol=0, atol=1e-11)
    without = affine(Cell(False).eval(), x)
    assert places(without)["cell.weight_ih"].startswith("not centred")


def test_transposed_convolutions_and_bilinear_forms_stay_plain():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.pair = nn.ConvTranspose1d(2, 3, 2, stride=2), nn.Bilinear(3, 3, 3)

        def forward(self, x):
            y = self.up(x).mean(2)
            return self.pair(y, y)

    fixed = affine(Both().eval(), 1 + torch.randn(9, 2, 4))
    assert all(place.startswith("not centred: ") for place in places(fixed).values())
    assert set(fixed.corrected) == {"up.weight", "pair.weight"}


def test_a_weight_normed_layer():
    x = 1 + torch.randn(20, 6, dtype=torch.float64)
    model = built(nn.Linear(6, 4), x)
    before = copy.deepcopy(model.layer)
    weight_norm(model.layer)
    fixed = affine(model, x)
    check_affine(before, fixed.model.layer, x[None])
    assert set(fixed.corrected) >= {"layer.bias", "layer.parametrizations.weight.original0"}
    assert places(fixed)["layer.parametrizations.weight.original1"] == "centred, its shift is in layer.bias"


def test_stored_in_half_precision_bias_and_weight_are_rounded_once():
    x = 1 + torch.randn(20, 6, dtype=torch.float64)
    model = built(nn.Linear(6, 4), x)
    stored = dict.fromkeys(dict(model.named_parameters()), torch.bfloat16)
    fixed = affine(model, x, stored_as=stored)
    expected, shift = slow_centred(model.layer.weight.detach()[None], x[None], ALPHA)
    half = rounded_once(model.layer.bias.detach() + shift[0], torch.bfloat16).double()
    assert torch.equal(fixed.corrected["layer.bias"], half)
    assert torch.equal(fixed.corrected["layer.weight"], rounded_once(expected[0], torch.bfloat16).double())


def test_rows_of_padding_are_not_in_the_mean():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.head = nn.Linear(5, 4).double(), nn.Linear(4, 3).double()

        def forward(self, x, attention_mask):
            y = self.first(x) * attention_mask[:, :, None]
            return self.head(y.sum(1))

    x = 1 + torch.randn(7, 6, 5, dtype=torch.float64)
    mask = (torch.arange(6)[None] < torch.tensor([6, 1, 3, 4, 2, 5, 6])[:, None]).long()
    x[mask == 0] = 1000.0
    model = Tokens().eval()
    data = {"x": x, "attention_mask": mask}
    fixed = verifix.correct(model, (data, torch.arange(7) % 3), alpha=ALPHA, affine=True, progress=False)
    expected, shift = slow_centred(model.first.weight.detach()[None], x[mask == 1][None], ALPHA)
    torch.testing.assert_close(fixed.corrected["first.weight"], expected[0], rtol=0, atol=1e-11)
    torch.testing.assert_close(fixed.corrected["first.bias"] - model.first.bias, shift[0], rtol=0, atol=1e-11)


def test_apply_undo_save_and_load_know_the_biases(tmp_path):
    model, (x, y) = small_net().eval(), small_data()
    fixed = verifix.correct(model, (x, y), alpha=ALPHA, affine=True, progress=False)
    loaded = verifix.Correction.load(fixed.save(tmp_path / "c.safetensors"))
    assert loaded.layers == fixed.layers
    other = copy.deepcopy(model)
    loaded.apply_(other)
    assert torch.equal(other(x), fixed.model(x))
    assert not torch.equal(other[0].bias, model[0].bias)
    loaded.undo_(other)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), model.parameters(), strict=True))


def test_each_fold_is_centred_by_the_mean_of_the_others(monkeypatch):
    seen = []

    def spy(weight, moments, **options):
        seen.append((moments.n, moments.mean.clone(), options["centred"]))
        return prepare(weight, moments, **options)

    monkeypatch.setattr("verifix.stages.project.prepare", spy)
    model, (x, y) = small_net(bn=False).double().eval(), small_data()
    x = x.double()
    verifix.correct(model, (x, y), affine=True, progress=False)
    first = [mean[0] for n, mean, centred in seen if centred and mean.shape[1] == 8 and n == 64]
    assert len({float(mean.sum()) for mean in first}) == 5
    torch.testing.assert_close(torch.stack(first[:5]).mean(0), x.mean(0))


def test_saved_moments_bring_their_means(tmp_path):
    model, (x, y) = small_net().double().eval(), small_data()
    x = 1 + x.double()
    file = verifix.collect_moments(model, (x[:30], y[:30]), progress=False).save(tmp_path / "m.safetensors")
    both = verifix.correct(model, (x[30:], y[30:]), alpha=40, moments=file, affine=True, progress=False)
    whole = verifix.correct(model, (x, y), alpha=40, affine=True, progress=False)
    assert both.corrected.keys() == whole.corrected.keys()
    for name, value in whole.corrected.items():
        torch.testing.assert_close(both.corrected[name], value, rtol=0, atol=1e-12)


# Suspects.


def test_suspects_are_contrasted_in_every_layer():
    model, (x, y) = small_net(bn=False).double().eval(), small_data()
    x = x.double()
    bad = 3 * torch.randn(30, 8, dtype=torch.float64)
    for affinely in (False, True):
        options = {"affine": affinely, "suspects": bad, "contrast": 0.5, "progress": False}
        fixed = verifix.correct(model, (x, y), alpha=ALPHA, **options)
        good, other = x, bad
        for i in (0, 2, 4):
            weight = model[i].weight.detach()
            expected = slow_contrasted(weight, good, other, ALPHA, 0.5, affinely)
            torch.testing.assert_close(fixed.corrected[f"{i}.weight"], expected, rtol=0, atol=1e-11)
            good, other = (model[i](rows).relu().detach() for rows in (good, other))
    assert fixed.provenance["suspects"] == 30
    assert len(fixed.provenance["suspects_sha256"]) == 64
    assert fixed.provenance["contrast"] == 0.5


@pytest.mark.parametrize("form", ["tensor", "pair", "dataset", "loader"])
def test_suspects_come_in_every_form_and_their_labels_do_not_matter(form):
    model, (x, y) = small_net().eval(), small_data()
    bad = torch.randn(20, 8)
    wrong = torch.full((20,), 77)
    dataset = torch.utils.data.TensorDataset(bad, wrong)
    forms = {
        "tensor": bad,
        "pair": (bad, wrong),
        "dataset": dataset,
        "loader": torch.utils.data.DataLoader(dataset, 7, shuffle=True),
    }
    fixed = verifix.correct(model, (x, y), alpha=ALPHA, suspects=forms[form], progress=False)
    expected = verifix.correct(model, (x, y), alpha=ALPHA, suspects=bad, progress=False)
    plain = verifix.correct(model, (x, y), alpha=ALPHA, progress=False)
    for name, value in expected.corrected.items():
        torch.testing.assert_close(fixed.corrected[name], value)
        assert not torch.allclose(plain.corrected[name], value)
    assert fixed.provenance["suspects_sha256"] == expected.provenance["suspects_sha256"]
    assert plain.provenance["suspects"] == 0


def test_suspects_that_are_verified_are_refused(tmp_path):
    model, (x, y) = small_net().eval(), small_data()
    with pytest.raises(DataError, match="3 of the 10 suspects are among the verified samples"):
        verifix.correct(model, (x, y), alpha=9, suspects=torch.cat([x[:3], torch.randn(7, 8)]), progress=False)
    earlier = verifix.collect_moments(model, (x[:30], y[:30]), progress=False)
    with pytest.raises(DataError, match="5 of the 5 suspects"):
        verifix.correct(model, (x[30:], y[30:]), alpha=9, moments=earlier, suspects=x[:5], progress=False)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"contrast": 0}, "contrast is 0"),
        ({"contrast": -1.0}, "contrast is -1"),
        ({"contrast": float("nan")}, "contrast is nan"),
        ({"contrast": 1e6}, "contrast is 1000000"),
        ({"contrast": True}, "contrast is True"),
        ({"affine": "yes"}, "affine is 'yes'"),
        ({"suspects": torch.zeros(0, 8)}, "suspects: "),
        ({"suspects": 7}, "suspects: "),
        ({"alpha": 1e11, "suspects": torch.ones(2, 8), "contrast": 1e3}, "alpha · "),
    ],
)
def test_options_that_cannot_be_used_get_one_clear_line(options, line):
    model, (x, y) = small_net().eval(), small_data()
    with pytest.raises((UsageError, DataError)) as caught:
        verifix.correct(model, (x, y), **{"alpha": 9.0, "progress": False, **options})
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_settings_of_a_stage_that_does_not_run_are_refused(monkeypatch):
    from verifix.stages import STAGES, Project

    monkeypatch.setitem(STAGES, "other", Project)
    with pytest.raises(UsageError, match="affine and contrast are settings of the stage 'project'"):
        stages_of("other", {"project": {"affine": True, "contrast": 1.0}})
    (stage,) = stages_of("verifix", {"project": {"affine": True, "contrast": 2.0}})
    assert (stage.affine, stage.contrast) == (True, 2.0)


def test_a_bias_is_a_run_of_its_parameter():
    bias = Bias("b", 2, 3)
    assert replace(bias, start=1).view(torch.arange(9.0)).tolist() == [1, 2, 3]

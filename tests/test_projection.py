from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.cases import (
    ALPHAS,
    CONVOLUTIONS,
    Bare,
    captured,
    one_hot_rows,
    projected,
    slow_projection,
    tolerance,
)
from verifix import UsageError
from verifix.moments import Moments, SharedRows, merge
from verifix.projection import ALPHA_RANGE, check_alpha, dual_is_cheaper, eigenvalues, importance, prepare


def conditions(case) -> dict[str, torch.Tensor]:
    plain = case.inputs(3)
    dead_inputs, dead_group = plain.clone(), plain.clone()
    dead_inputs[:, 1] = 0
    dead_group[:, : 4 // case.groups] = 0
    return {
        "one sample": case.inputs(1),
        "many rows": case.inputs(12),
        "dead inputs": dead_inputs,
        "dead group": dead_group,
        "duplicated rows": plain[[0, 0, 0, 1]],
    }


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolution_equals_the_svd_definition(case):
    conv = case.build()
    for name, x in conditions(case).items():
        table, _ = captured(conv, x)
        (moments,) = table.values()
        rows = one_hot_rows(conv, x)
        assert moments.n == rows.shape[1], name
        for alpha in ALPHAS:
            weight = conv.weight.detach().reshape(case.groups, -1, rows.shape[2])
            expected = slow_projection(weight, rows, alpha).reshape(conv.weight.shape)
            for dual in (None, False) if moments.rows is None else (None, False, True):
                new = projected(conv, table, alpha, dual)["weight"]
                assert float((new - expected).norm()) <= tolerance(alpha, weight), (name, alpha, dual)


def test_there_are_enough_convolutions():
    assert len(CONVOLUTIONS) >= 288
    assert {(c.stride, c.dilation, c.groups, c.padding, c.mode) for c in CONVOLUTIONS} >= {
        (1, 2, 4, "same", "circular")
    }


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("samples", [1, 4, 6, 40])
def test_linear_and_bare_parameter_equal_the_svd_definition(samples, alpha):
    model, x = Bare(), torch.randn(samples, 6, dtype=torch.float64)
    x[:, 2] = 0
    x = torch.cat([x, x[:1]])
    table, _ = captured(model, x)
    new = projected(model, table, alpha)
    first, second = model.both[:4].detach(), model.whole.detach()
    hidden = (x @ first.T).relu()
    assert torch.equal(new["both"][4:], model.both[4:])
    for found, weight, rows in ((new["both"][:4], first, x), (new["whole"], second, hidden)):
        expected = slow_projection(weight[None], rows[None], alpha)[0]
        assert float((found - expected).norm()) <= tolerance(alpha, weight)


def test_linear_over_tokens_counts_every_token():
    layer, x = nn.Linear(5, 3).double(), torch.randn(2, 7, 5, dtype=torch.float64)
    table, _ = captured(layer, x)
    assert [m.n for m in table.values()] == [14]
    expected = slow_projection(layer.weight.detach()[None], x.reshape(1, 14, 5), 50.0)[0]
    torch.testing.assert_close(projected(layer, table, 50.0)["weight"], expected, rtol=0, atol=1e-13)


@settings(deadline=None, max_examples=60)
@given(
    n=st.integers(1, 12),
    width=st.integers(1, 8),
    outputs=st.integers(1, 6),
    alpha=st.floats(1e-3, 1e6),
    scale=st.floats(1e-6, 1e6),
    seed=st.integers(0, 999),
)
def test_both_forms_agree_at_every_scale(n, width, outputs, alpha, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = scale * torch.randn(1, n, width, dtype=torch.float64, generator=generator)
    weight = torch.randn(1, outputs, width, dtype=torch.float64, generator=generator)
    expected = slow_projection(weight, rows, alpha)
    forms = [False] if Moments(rows).rows is None else [False, True]
    for dual in forms:
        found = prepare(weight, Moments(rows), dual=dual).project(alpha)
        assert float((found - expected).norm()) <= tolerance(max(alpha, 1 / alpha), weight) + 1e-12


@given(st.floats(0, 1), st.floats(1e-6, 1e9))
def test_importance_is_the_logistic_of_the_paper(r, alpha):
    found = float(importance(torch.tensor(r, dtype=torch.float64), alpha))
    assert 0 <= found <= 1 + 1e-12
    if 1e-12 < r < 1 - 1e-12:
        logit = torch.tensor(alpha, dtype=torch.float64).log() + torch.tensor(r, dtype=torch.float64).logit()
        assert found == pytest.approx(float(logit.sigmoid()), rel=1e-9)


def test_eigenvalues_that_rounding_puts_outside_0_and_1_are_brought_back():
    r = torch.tensor([-1e-17, 1 + 1e-15], dtype=torch.float64)
    assert importance(r, 1e9).tolist() == [0, 1]
    line = torch.ones(1, 1, 40).double() * torch.arange(1, 200).double()[None, :, None]
    assert float(torch.linalg.eigvalsh(Moments(line).gram / Moments(line).trace).min()) < 0
    assert float(eigenvalues(Moments(line)).min()) == 0


def test_alpha_one_multiplies_by_c():
    rows, weight = torch.randn(1, 20, 4).double(), torch.randn(1, 3, 4).double()
    c = rows.mT @ rows / rows.square().sum()
    torch.testing.assert_close(prepare(weight, Moments(rows)).project(1.0), weight @ c)


def test_large_alpha_tends_to_the_span_and_not_to_the_identity():
    rows, weight = torch.randn(1, 2, 4).double(), torch.randn(1, 3, 4).double()
    onto_span = torch.linalg.pinv(rows) @ rows
    torch.testing.assert_close(prepare(weight, Moments(rows)).project(1e12), weight @ onto_span, rtol=0, atol=1e-3)
    assert float((prepare(weight, Moments(rows)).project(1e12) - weight).norm()) > 0.1


def test_the_extreme_strengths_work_on_a_layer_of_rank_one():
    rows = torch.ones(1, 1, 50).double().repeat(1, 200, 1)
    for alpha in ALPHA_RANGE:
        assert torch.isfinite(prepare(torch.randn(1, 3, 50), Moments(rows)).project(alpha)).all()


@pytest.mark.parametrize("alpha", [0, -1.0, float("nan"), float("inf"), 1e13, "3", None, True])
def test_other_strengths_are_refused(alpha):
    with pytest.raises(UsageError, match="alpha is"):
        check_alpha(alpha)


def test_the_dual_needs_rows():
    moments = Moments(torch.randn(1, 9, 4))
    with pytest.raises(ValueError, match="needs the rows"):
        prepare(torch.randn(1, 2, 4), moments, dual=True)


def test_the_dual_is_chosen_where_it_costs_less():
    assert dual_is_cheaper(10, 1000, 100)
    assert not dual_is_cheaper(990, 1000, 100)


@pytest.mark.parametrize("n", [3, 30])
def test_eigenvalues_are_those_of_c_and_stay_within_0_and_1(n):
    rows = torch.randn(2, n, 6).double()
    rows[1] = 0
    r = eigenvalues(Moments(rows))
    c = rows[0].T @ rows[0] / rows[0].square().sum()
    torch.testing.assert_close(r[0], torch.linalg.eigvalsh(c)[-min(n, 6) :])
    assert (r >= 0).all()
    assert (r <= 1).all()
    assert (r[0].diff() >= 0).all()
    assert not r[1].any()


@pytest.mark.parametrize("alpha", [10.0, 1e3, 1e6, 1e7])
@pytest.mark.parametrize("dual", [False, True])
def test_float32_solves_as_exactly_as_documented(alpha, dual):
    generator = torch.Generator().manual_seed(3)
    spectrum = torch.logspace(0, -8, 80)  # far more than float32 resolves once squared
    rows = (torch.randn(60 if dual else 400, 80, generator=generator) * spectrum)[None]
    weight = torch.randn(1, 30, 80, generator=generator)
    exact, quick = (
        prepare(weight, Moments(rows), dual=dual, dtype=dtype).project(alpha)
        for dtype in (torch.float64, torch.float32)
    )
    assert quick.dtype == torch.float32
    assert float((exact - quick).norm() / exact.norm()) < 1e-6 + 3e-9 * alpha


def test_where_float32_has_no_factor_float64_solves(monkeypatch):
    rows = torch.randn(1, 50, 12)
    given = torch.linalg.cholesky_ex
    kinds = []

    def refusing(system):
        kinds.append(system.dtype)
        factor, failed = given(system)
        return factor, failed + 1

    monkeypatch.setattr(torch.linalg, "cholesky_ex", refusing)
    weight = torch.randn(1, 4, 12)
    quick = prepare(weight, Moments(rows), dtype=torch.float32).project(100.0)
    exact = prepare(weight, Moments(rows)).project(100.0)
    assert kinds == [torch.float32]
    torch.testing.assert_close(quick.double(), exact, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("size", [1e37, 1e-37])
def test_rows_at_the_ends_of_float32_are_projected_as_others(size, dtype):
    rows, weight = torch.randn(1, 20, 64), torch.randn(1, 5, 64)
    found = prepare(weight, Moments((rows.double() * size).float()), dual=True, dtype=dtype).project(100.0)
    expected = prepare(weight, Moments(rows.double()), dual=False).project(100.0)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1e37, 1.0, 1e-37])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sets_of_folds_that_share_rows_are_projected_as_if_they_did_not(size, dtype):
    groups, width = 2, 300
    parts = [Moments(torch.randn(groups, n, width, dtype=dtype) * size) for n in (40, 1, 90)]
    parts.insert(1, None)  # a fold that the layer has not seen
    parts[0].rows[1] = 0
    sets = [(0, 2), (3, 0), (0, 1, 2, 3), (1, 2), (0,)]
    own = {folds: Moments(merge_of(parts, folds).rows.clone()) for folds in sets}
    shared = SharedRows(parts)
    weights = torch.randn(2, groups, 7, width, dtype=dtype)
    for (folds, alone), weight in itertools.product(own.items(), weights):
        together = shared.merge(folds)
        assert torch.equal(together.rows, alone.rows)
        assert together.n == alone.n
        assert together.shared_products(weight) is not None
        for alpha in (3.0, 1e4):
            exact = prepare(weight, alone, dual=True).project(alpha).double()
            found = prepare(weight, together, dual=True, dtype=dtype).project(alpha).double()
            bound = 1e-13 * alpha if dtype == torch.float64 else 1e-6 + 3e-9 * alpha
            assert float((exact - found).norm() / exact.norm()) < bound


def merge_of(parts, folds) -> Moments:
    return merge(parts[k] for k in folds if parts[k] is not None)


def test_shared_rows_are_left_alone_by_those_who_take_in_more():
    given = [torch.randn(1, n, 40, dtype=torch.float64) for n in (4, 5)]
    shared = SharedRows([Moments(rows) for rows in given])
    more = torch.randn(1, 3, 40, dtype=torch.float64)
    for found in (shared.merge([0, 1]) + Moments(more), shared.merge([0]).add_(given[1], more)):
        assert found.shared_products(torch.randn(1, 2, 40)) is None
        torch.testing.assert_close(found.gram, Moments(torch.cat([*given, more], dim=1)).gram)
    assert shared.merge([0, 1]).condense_().shared_products(torch.randn(1, 2, 40)) is None
    assert torch.equal(shared.rows, torch.cat(given, dim=1))
    assert torch.equal(shared.merge([1]).rows, given[1])


def test_parts_with_more_rows_than_they_are_wide_together_are_summed():
    given = [torch.randn(1, n, 40, dtype=torch.float64) for n in (30, 20, 5)]
    shared = SharedRows([Moments(rows) for rows in given])
    assert shared.merge([0, 1]).rows is None
    assert shared.merge([1, 2]).rows is not None
    torch.testing.assert_close(shared.merge([0, 1]).gram, Moments(torch.cat(given[:2], dim=1)).gram)

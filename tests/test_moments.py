from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verifix.moments import Moments, merge


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@settings(deadline=None, max_examples=80)
@given(
    cuts=st.lists(st.integers(0, 30), max_size=5),
    width=st.sampled_from([3, 12, 40]),
    seed=st.integers(0, 999),
    data=st.data(),
)
def test_any_split_and_any_order_of_merging_agree(cuts, width, seed, data):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(2, 30, width, dtype=torch.float64, generator=generator)
    edges = [0, *sorted(cuts), 30]
    parts = [Moments(rows[:, a:b]) for a, b in itertools.pairwise(edges)]
    merged = merge(data.draw(st.permutations(parts)))
    assert merged.n == 30
    assert (merged.rows is None) == (width <= 30)
    expected = rows.mT @ rows
    assert relative(merged.gram, expected) <= 1e-12
    assert relative(merged.trace, expected.diagonal(dim1=1, dim2=2).sum(1)) <= 1e-12
    assert relative(merged.mean, rows.mean(1)) <= 1e-12
    centred = rows - rows.mean(1, keepdim=True)
    assert relative(merged.scatter, centred.mT @ centred) <= 1e-12
    one_by_one = parts[0].empty()
    for a, b in itertools.pairwise(edges):
        one_by_one.add_(rows[:, a:b])
    assert relative(one_by_one.scatter, merged.scatter) <= 1e-12
    assert relative(one_by_one.mean, merged.mean) <= 1e-12
    assert one_by_one.n == 30


def test_merging_leaves_both_parts_alone():
    a, b = Moments(torch.ones(1, 2, 4)), Moments(torch.ones(1, 3, 4))
    total = a + b
    assert (a.n, b.n, total.n) == (2, 3, 5)
    assert a.rows.shape == (1, 2, 4)
    total.add_(torch.ones(1, 1, 4))
    assert float(a.gram[0, 0, 0]) == 2
    assert float(total.gram[0, 0, 0]) == 6


def test_rows_are_copied_because_the_network_overwrites_them():
    rows = torch.ones(1, 2, 8, dtype=torch.float64)
    moments = Moments(rows)
    moments.add_(rows)
    rows.zero_()
    assert moments.rows is not None
    assert float(moments.trace) == 32


@pytest.mark.parametrize(("dtype", "value", "n"), [(torch.float16, 30.0, 100), (torch.bfloat16, 1.0, 1000)])
def test_half_precision_rows_are_upcast_before_multiplying(dtype, value, n):
    assert float(Moments(torch.full((1, n, 2), value, dtype=dtype)).gram[0, 0, 1]) == n * value**2


@pytest.mark.parametrize("ratio", [1e2, 1e4, 1e6])
@pytest.mark.parametrize("how", ["one by one", "in chunks", "merged"])
def test_scatter_keeps_its_digits_however_far_the_mean_is_from_zero(how, ratio):
    rows = torch.randn(2, 500, 9, dtype=torch.float64) + ratio * torch.randn(2, 1, 9, dtype=torch.float64)
    exact = torch.from_numpy(np.stack([np.cov(x.numpy().astype(np.longdouble).T, ddof=0) for x in rows]).astype(float))
    chunks = rows.split({"one by one": 1, "in chunks": 37, "merged": 50}[how], dim=1)
    if how == "merged":
        moments = merge(Moments(chunk) for chunk in chunks)
    else:
        moments = Moments(chunks[0])
        for chunk in chunks[1:]:
            moments.add_(chunk)
    assert relative(moments.scatter / 500, exact) <= 1e-15 * 100 * ratio  # what rounding the rows themselves costs
    naive = moments.gram - 500 * moments.mean[:, :, None] * moments.mean[:, None]
    if ratio >= 1e4:
        assert relative(naive / 500, exact) > 1e-10 * ratio / 1e4


def test_one_far_row_does_not_spoil_the_scatter_of_the_others():
    rows = torch.randn(1, 3000, 4, dtype=torch.float64) + 1e4
    first = Moments(torch.zeros(1, 5, 4))
    exact = np.cov(torch.cat([torch.zeros(5, 4), rows[0]]).numpy().astype(np.longdouble).T, ddof=0).astype(float)
    for moments in (first + Moments(rows), Moments(rows) + first, Moments(torch.zeros(1, 5, 4)).add_(rows)):
        assert relative(moments.scatter[0] / 3005, torch.from_numpy(exact)) <= 1e-13


def test_no_rows_have_mean_zero_and_add_nothing():
    none = Moments(torch.ones(1, 5, 4)).empty()
    assert not none.mean.any()
    assert not none.scatter.any()
    some = Moments(torch.ones(1, 5, 4))
    assert torch.equal((some + none).mean, some.mean)
    assert torch.equal((none + some).mean, some.mean)
    assert torch.equal(some.add_(torch.ones(1, 0, 4)).mean, torch.ones(1, 4).double())
    assert some.n == 5


def test_effective_rank():
    assert float(Moments(torch.eye(7)[None]).effective_rank) == pytest.approx(7)
    assert float(Moments(torch.ones(1, 9, 7)).effective_rank) == pytest.approx(1)
    assert float(Moments(torch.zeros(1, 9, 7)).effective_rank) == 0
    few = torch.randn(1, 3, 7)
    assert float(Moments(few).effective_rank) == pytest.approx(float(Moments(few).condense_().effective_rank))


def test_a_not_finite_row_shows_in_the_trace():
    for n in (2, 20):
        rows = torch.ones(1, n, 4)
        rows[0, 1, 2] = float("nan")
        assert not torch.isfinite(Moments(rows).trace).any()

from __future__ import annotations

import itertools

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
    one_by_one = parts[0].empty()
    for a, b in itertools.pairwise(edges):
        one_by_one.add_(rows[:, a:b])
    assert relative(one_by_one.gram, merged.gram) <= 1e-12
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


@pytest.mark.parametrize("n", [100, 30_000])
@pytest.mark.parametrize("shift", [0.0, 3.0, 300.0])
@pytest.mark.parametrize("how", ["one by one", "in chunks", "merged"])
def test_products_in_float32_are_added_in_float64(how, shift, n):
    rows = torch.randn(2, n, 9) + shift
    chunks = rows.split({"one by one": max(1, n // 100), "in chunks": n // 7, "merged": n // 3}[how], dim=1)
    moments = Moments(chunks[0]) if how != "merged" else merge(Moments(chunk) for chunk in chunks)
    for chunk in chunks[1:] if how != "merged" else ():
        moments.add_(chunk)
    exact = rows.double().mT @ rows.double()
    assert moments.gram.dtype == torch.float64
    assert relative(moments.gram, exact) <= 1e-6
    assert relative(Moments(rows.double()).gram, exact) <= 1e-13


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-12, 1.0, 1e12, 1e18, 3e37])
def test_squares_beyond_float32_are_scaled(size):
    rows = size * torch.rand(1, 50, 6)
    exact = rows.double().mT @ rows.double()
    for moments in (Moments(rows), Moments(rows[:, :3]).add_(rows[:, 3:])):
        assert relative(moments.gram, exact) <= 2e-7
        assert relative(moments.trace, exact.diagonal(dim1=1, dim2=2).sum(1)) <= 2e-7


def test_chunks_of_very_different_size_keep_their_own_digits():
    rows = torch.cat([1e-15 * torch.rand(1, 50, 6), 1e15 * torch.rand(1, 50, 6)], dim=1)
    small, large = Moments(rows[:, :50]), Moments(rows[:, 50:])
    assert relative((small + large).gram, rows.double().mT @ rows.double()) <= 2e-7
    assert relative(small.gram, rows[:, :50].double().mT @ rows[:, :50].double()) <= 2e-7


def test_no_rows_add_nothing():
    none = Moments(torch.ones(1, 5, 4)).empty()
    assert not none.gram.any()
    some = Moments(torch.ones(1, 5, 4))
    assert torch.equal((some + none).gram, some.gram)
    assert torch.equal((none + some).gram, some.gram)
    assert some.add_(torch.ones(1, 0, 4)).n == 5


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_half_of_the_blocks_and_rows_that_wait_make_the_whole_matrix(dtype):
    parts = [torch.randn(2, n, 600, dtype=dtype) for n in (40, 700, 10, 290, 1, 310, 3)]
    moments = Moments(parts[0])
    for i, part in enumerate(parts[1:], start=2):
        moments.add_(part)
        whole = torch.cat(parts[:i], dim=1).double()
        if i % 2:  # asked for in between, and not at all
            assert relative(moments.gram, whole.mT @ whole) <= (5e-7 if dtype == torch.float32 else 1e-14)
            assert relative(moments.gram, moments.gram.mT) <= 5e-7
        assert relative(moments.trace, whole.square().sum(dim=(1, 2))) <= 1e-6
        assert moments.n == whole.shape[1]
    assert relative((moments + Moments(parts[0])).gram - moments.gram, Moments(parts[0]).gram) <= 1e-6

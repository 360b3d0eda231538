"""Samples in memory as arrays: the same samples, batches and digests as one by one."""

from __future__ import annotations

import pytest
import torch
from torch.utils.data import TensorDataset

from verifix.errors import DataError
from verifix.model import rows
from verifix.model.identified import alone, input_digest
from verifix.model.rows import Packed, Rows
from verifix.model.samples import read_samples
from verifix.model.sources import collate, source_of


def equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return type(a) is type(b) and len(a) == len(b) and all(map(equal, a, b))
    return type(a) is type(b) and a == b


def mixed(i: int):
    """Samples of several forms, one after the other."""
    if i % 23 == 22:
        return "a text", i
    if i % 11 < 4:
        return {"x": torch.full((2, 3), float(i)), "y": (torch.tensor(i), i)}
    return torch.arange(4 + i // 40, dtype=torch.int16) + i, torch.tensor(i % 3)


def test_what_is_packed_comes_out_as_it_went_in(monkeypatch):
    monkeypatch.setattr(rows, "BLOCK", 5)
    packed, plain = Packed(2**20), [mixed(i) for i in range(97)]
    for i, item in enumerate(plain):
        packed.add(item)
        assert len(packed) == i + 1
        assert equal(packed[i], item)
    assert packed.whole
    assert all(equal(packed[i], plain[i]) for i in range(-97, 97))
    with pytest.raises(IndexError):
        packed[97]


def test_more_than_there_is_room_for_is_not_kept():
    packed = Packed(1000)
    for _ in range(11):
        packed.add((torch.zeros(25), 1))
    assert not packed.whole
    assert len(packed) == 0


X, Y = torch.randn(70, 3, generator=torch.Generator().manual_seed(0)), torch.arange(70) % 4


@pytest.mark.parametrize("inputs", [X, (X, X[:, :1]), {"a": X, "b": X.long()}], ids=["tensor", "tuple", "dictionary"])
def test_a_batch_of_rows_is_what_torch_puts_together(inputs):
    found = Rows(inputs, Y)
    some = [3, 0, 69, 3]
    expected = collate([found[i] for i in some])
    assert equal(list(found.batch(some)), expected)
    assert equal(list(next(source_of((inputs, Y))._collated(some, 4))), expected)


@pytest.mark.parametrize("data", [(X, Y), TensorDataset(X, Y)], ids=["pair", "data set"])
def test_rows_are_known_by_the_digests_of_single_samples(monkeypatch, data):
    monkeypatch.setattr(rows, "BLOCK", 16)
    samples, source = read_samples(data), source_of(data)
    singles = [alone(source, source.dataset[i], i) for i in range(70)]
    assert list(samples.digests) == [input_digest(each.inputs) for each in singles]
    assert torch.equal(samples.labels, Y)
    assert isinstance(samples.source.dataset.items, Rows)
    broken = X.clone()
    broken[41, 2] = torch.nan
    with pytest.raises(DataError, match="input of sample 41 contains NaN"):
        read_samples((broken, Y))

"""Moments under a limit: passes per group of layers, a temporary file, and rows that are drawn."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import pytest
import torch
from torch import nn

import verifix
from tests.cases import small_data
from tests.stage_cases import CPU, interleaved, memorised
from verifix.capture.collect import Collected, collect
from verifix.capture.memory_plan import LayerSize, Limits, planned, size_of, spelled
from verifix.capture.row_sample import RowSample
from verifix.capture.spilled_moments import Spill
from verifix.errors import UsageError, VerifixError
from verifix.model.borrow import borrowed
from verifix.model.samples import read_samples
from verifix.moments import Moments
from verifix.options import MemoryOptions


class Net(nn.Module):
    """Convolutions that are multiplied by lags and unfolded, linear layers, and an expert that few samples see."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.lags = nn.Conv2d(8, 8, 3, padding=1)
        self.expert = nn.Linear(32, 32)
        self.head = nn.Linear(32, 3)

    def forward(self, x):
        features = self.lags(self.body(self.stem(x).relu()).relu()).relu().flatten(1)
        hidden = x.flatten(1)[:, 0] > 1
        if hidden.any():
            features = features.index_add(0, hidden.nonzero()[:, 0], self.expert(features[hidden]))
        return self.head(features)


def images(n: int = 90) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = small_data(n, d_in=16)
    return torch.cat([torch.zeros(1, 16), x[1:]]).reshape(n, 1, 4, 4), y  # the first one does not see the expert


def collected(limits: Limits | None = None, dtype=torch.float32, folds: int = 3, **settings) -> Collected:
    model, (x, y) = Net().to(dtype).eval(), images()
    samples = read_samples((x.to(dtype), y))
    with borrowed(model):
        return collect(model, samples, interleaved(90, folds), batch_size=16, device=CPU, limits=limits, **settings)


def held(found: Collected) -> int:
    """Bytes of all moments."""
    return sum(x.numel() * x.element_size() for table in found.folds for m in table.values() for x in m.tensors)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("folds", [1, 3])
def test_with_a_limit_the_moments_are_the_same_to_the_bit(dtype, folds, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    torch.manual_seed(0)
    plain = collected(dtype=dtype, folds=folds)
    assert plain.remarks == ()
    passes = set()
    for memory in (230_000, 240_000, 300_000) if dtype == torch.float32 else (240_000, 300_000):
        torch.manual_seed(0)
        limited = collected(Limits(memory), dtype, folds)
        passes.add(limited.remarks[0] if limited.remarks else "")
        assert {x.parameter for x in limited.layers} == {x.parameter for x in plain.layers}
        assert torch.equal(limited.logits, plain.logits)
        assert limited.accounts == plain.accounts
        for own, other in zip(plain.folds, limited.folds, strict=True):
            assert own.keys() == other.keys()
            assert len(own) == len(other)
            for layer in own:
                assert own[layer].n == other[layer].n
                pairs = zip(own[layer].tensors, other[layer].tensors, strict=True)
                assert all(torch.equal(a, b) for a, b in pairs), layer
    assert max(map(len, plain.folds)) == 5
    assert any("passes over the samples, one per group of layers" in line for line in passes)
    assert [
        path for path in tmp_path.iterdir() if path.is_file()
    ] == []  # the file has no name, so that nothing is left of it


def test_a_limited_correction_chooses_and_is_the_same():
    x, y = images()
    model = memorised(Net(), x, y)
    for settings in ({"alpha": 20.0}, {"recipe": "project,layerwise"}):
        plain = verifix.correct(model, (x, y), progress=False, **settings)
        limited = verifix.correct(model, (x, y), progress=False, memory="0.227 MB", **settings)
        assert limited.strengths == plain.strengths
        assert limited.corrected.keys() == plain.corrected.keys()
        assert all(torch.equal(limited.corrected[name], plain.corrected[name]) for name in plain.corrected)
        (line,) = [note for note in limited.notes if "passes over the samples" in note]
        assert "wait in a temporary file" in line
        assert limited.layers == plain.layers
    assert plain.alpha is not None


@pytest.mark.parametrize("folds", [1, 3])
def test_the_plan_knows_the_size_of_the_moments(folds):
    found = collected(folds=folds)
    rows = {"stem.weight": 16, "body.weight": 4, "lags.weight": 4, "head.weight": 1}
    sizes = {
        layer: size_of(layer, 1, found.folds[0][layer].width, rows[layer.parameter])
        for layer in found.layers
        if layer.parameter in rows
    }
    limit = planned(sizes, 90, folds, Limits(230_000))
    assert limit.in_file == sum(
        x.numel() * x.element_size() for table in found.folds for layer in sizes for x in table[layer].tensors
    )
    assert [layer for group in limit.groups for layer in group] == list(sizes)
    assert limit.passes > 1
    assert limit.at_once <= 230_000
    assert planned(sizes, 90, folds).passes == 1


def test_a_group_holds_as_much_as_fits_and_a_layer_that_does_not_fit_is_named():
    layers = collected().layers
    sizes = {layer: LayerSize(1, 10, 4, 100.0) for layer in layers}
    one, space = sizes[layers[0]].moments(30, 60), sizes[layers[0]].workspace(90)
    assert (one, space) == (8 * 10 * 10, 4 * 8 * 10 * 10 + 4 * 8 * 10 * 4)
    plan = planned(sizes, 90, 3, Limits(space + 2 * one))
    assert [len(group) for group in plan.groups] == [2, 2, 1]
    assert (plan.at_once, plan.in_file, plan.weights) == (space + 2 * one, 3 * 5 * one, 5 * 3 * 4 * 10 * 4)
    with pytest.raises(UsageError, match=r"memory is 5.2 kB, but layer 'stem.weight' alone takes 5.3 kB; give that"):
        planned(sizes, 90, 3, Limits(space + one - 100))


def test_a_layer_with_few_rows_keeps_them():
    wide = LayerSize(2, 1000, 10, 1.0)
    assert wide.moments(50, 100) == 2 * 1000 * 4 * 50
    assert LayerSize(2, 1000, 10, 1.0, 8).moments(50, 100) == 2 * 1000 * 8 * 50
    assert wide.moments(50, 1000) == wide.moments(2000, 0) == 2 * 1000 * 1000 * 8
    assert wide.workspace(100) < wide.workspace(1000) == wide.workspace(9000)


def test_a_disk_that_is_too_small_is_refused_in_one_line(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(VerifixError, match=r"take 1e\+09 GB in a temporary file, but .* set TMPDIR"):
        Spill(10**18)
    assert list(Path(tmp_path).iterdir()) == []


def test_drawn_rows_are_unbiased_and_as_far_off_as_stated():
    layer = collected().layers[0]
    rows = torch.randn(2, 600, 5, dtype=torch.float64) * torch.linspace(0.2, 3, 600, dtype=torch.float64)[:, None]
    whole = Moments(rows)
    mean, squares, stated, counts = torch.zeros(2, 5, 5), 0.0, [], []
    for seed in range(200):
        sample = RowSample(60, {layer: 600.0}, seed)
        drawn = Moments(torch.cat([sample.draw(layer, part) for part in rows.split(100, dim=1)], dim=1))
        mean += drawn.gram / 200
        squares += float((drawn.gram - whole.gram).square().sum() / whole.gram.square().sum()) / 200
        stated.append(sample.error(layer, drawn))
        counts.append(drawn.n)
    assert 55 < sum(counts) / 200 < 65
    assert float((mean - whole.gram).norm() / whole.gram.norm()) < 3 * math.sqrt(squares / 200)
    assert 0.85 < math.sqrt(squares) / (sum(stated) / 200) < 1.15


def test_rows_are_drawn_alike_whatever_the_groups_and_all_are_taken_where_there_are_few():
    torch.manual_seed(0)
    all_rows = collected()
    torch.manual_seed(0)
    some = collected(Limits(None, 200, 7))
    torch.manual_seed(0)
    limited = collected(Limits(227_000, 200, 7))
    torch.manual_seed(0)
    other = collected(Limits(None, 200, 8))
    (line,) = some.remarks
    assert line.startswith("The moments of 3 layers are made of about 200 rows each, drawn at random: they are off by")
    assert limited.remarks[-1] == line != other.remarks[0]
    for layer in some.layers:
        found, every = some.moments(layer, range(3), {}), all_rows.moments(layer, range(3), {})
        assert torch.equal(found.gram, limited.moments(layer, range(3), {}).gram)
        if layer.parameter in ("head.weight", "expert.weight"):
            assert torch.equal(found.gram, every.gram)
        else:
            assert 180 <= found.n <= 220
            error = float((found.gram - every.gram).norm() / every.gram.norm())
            assert 0 < error < 0.5


@pytest.mark.parametrize(
    ("memory", "size"),
    [("2GB", 2 * 10**9), ("1.5 gib", 3 * 2**29), (10**6, 10**6), ("500", 500), ("64kB", 64_000), (None, None)],
)
def test_memory_is_read_from_numbers_and_texts(memory, size):
    assert MemoryOptions(memory=memory).memory_bytes == size


WRONG = [("memory", x) for x in ("2 cups", "GB", 0, -5, True, "0.1")] + [("max_rows", 0), ("max_rows", 1.5)]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_other_memory_and_rows_are_refused(name, value):
    with pytest.raises(UsageError, match=rf"^{name} is .*; it must be "):
        MemoryOptions(**{name: value})


class Asking(Net):
    """Asks for a number on its way, as models do that look whether a mask hides anything."""

    def forward(self, x):
        return self.head(self.lags(self.body(self.stem(x).relu()).relu()).relu().flatten(1) * bool((x == x).all()))


def test_a_model_without_values_is_surveyed_as_one_with_values():
    model, x = Asking().eval(), images(2)[0]
    plain, without = verifix.inspect(model, x), verifix.inspect(Asking().eval().to("meta"), x)
    assert (without.accounts, without.rows, without.widths) == (plain.accounts, plain.rows, plain.widths)
    assert without.plan(90, 3, Limits(240_000)) == plain.plan(90, 3, Limits(240_000))
    with pytest.raises(UsageError, match="is on the meta device and has no values"):
        verifix.correct(Asking().eval().to("meta"), images(), alpha=10.0, progress=False)


def test_sizes_are_rounded_up():
    assert [spelled(x) for x in (1, 999_999, 1_000_001, 2.31e9)] == ["0.1 kB", "1000 kB", "1.1 MB", "2.4 GB"]

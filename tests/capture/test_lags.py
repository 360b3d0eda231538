"""XᵀX of patches without making them equals XᵀX of the patches, for every geometry."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from verifix.capture.collect import collect
from verifix.capture.kinds import lags
from verifix.capture.kinds.convolution import unfold
from verifix.capture.kinds.lags import Geometry, Patches, PatchMoments, boxes
from verifix.model.borrow import borrowed
from verifix.model.samples import read_samples
from verifix.moments import Moments


def patches_of(x: Tensor, groups: int, geometry: Geometry) -> Tensor:
    """Return all patches, one by one, by the definition of a convolution."""
    rows = []
    axes = range(len(geometry.space))
    outputs = [
        geometry.space[i] + sum(geometry.pads[i]) - geometry.dilation[i] * (geometry.kernel[i] - 1) for i in axes
    ]
    per_group = x.shape[1] // groups
    for sample, position in itertools.product(range(len(x)), itertools.product(*map(range, outputs))):
        for channel in range(x.shape[1]):
            for tap in itertools.product(*map(range, geometry.kernel)):
                at = [position[i] + geometry.dilation[i] * tap[i] - geometry.pads[i][0] for i in axes]
                inside = all(0 <= at[i] < geometry.space[i] for i in axes)
                rows.append(x[(sample, channel, *at)] if inside else x.new_zeros(()))
    taps = geometry.taps
    return torch.stack(rows).reshape(-1, groups, per_group * taps).movedim(1, 0)


axis = st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(0, 3), st.integers(0, 3), st.integers(1, 3)).filter(
    lambda a: a[0] + a[2] + a[3] > a[4] * (a[1] - 1)
)


@pytest.fixture(params=[0, 99], ids=["all are cut", "zeros behind the lines"])
def zeros(request):
    """Whether maps get zeros behind their lines, however small they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lags, "MOST_ZEROS", request.param)
        yield


@pytest.mark.usefixtures("zeros")
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(axis, min_size=1, max_size=2), st.sampled_from([1, 2]), st.integers(1, 3), st.integers(1, 3))
def test_it_is_the_gram_matrix_of_the_patches(axes, groups, per_group, samples):
    space, kernel, before, after, dilation = zip(*axes, strict=True)
    geometry = Geometry(space, kernel, tuple(zip(before, after, strict=True)), dilation)
    x = torch.randn(samples, groups * per_group, *space, dtype=torch.float64)
    patches = Patches(x, groups, geometry)
    rows = patches_of(x, groups, geometry)
    assert patches.shape == rows.shape
    found = PatchMoments(patches)
    found.add_patches_(patches)
    assert found.n == 2 * rows.shape[1]
    torch.testing.assert_close(found.gram, 2 * rows.mT @ rows, rtol=1e-12, atol=1e-12)
    assert torch.equal(found.gram, found.gram.mT) or torch.allclose(found.gram, found.gram.mT, rtol=1e-14, atol=1e-14)


@pytest.mark.usefixtures("zeros")
def test_three_axes():
    geometry = Geometry((3, 4, 2), (2, 3, 2), ((1, 0), (1, 1), (0, 1)), (1, 1, 1))
    x = torch.randn(2, 4, 3, 4, 2, dtype=torch.float64)
    rows = patches_of(x, 2, geometry)
    torch.testing.assert_close(PatchMoments(Patches(x, 2, geometry)).gram, rows.mT @ rows, rtol=1e-12, atol=1e-12)


def test_patches_that_wait_and_parts_that_are_merged_are_those_of_all_samples():
    geometry = Geometry((4, 5), (3, 2), ((1, 1), (0, 1)), (1, 1))
    x = torch.randn(90, 40, 4, 5, dtype=torch.float64)
    first, second, third = (Patches(part, 2, geometry) for part in x.split((7, 60, 23)))
    whole = PatchMoments(first)
    for patches in (second, third):
        whole.add_patches_(patches)
    (rows,) = unfold(x, (3, 2), (1, 1), geometry.pads, (1, 1), 2)
    expected = Moments(rows)
    merged = PatchMoments(first) + PatchMoments(second) + PatchMoments(third)
    assert isinstance(merged, PatchMoments)
    mixed = PatchMoments(first) + Moments(next(iter(unfold(x[7:], (3, 2), (1, 1), geometry.pads, (1, 1), 2))))
    for found in (whole, merged, mixed, merged.to(torch.device("cpu"))):
        assert found.n == expected.n
        assert found.rows is None
        torch.testing.assert_close(found.gram, expected.gram, rtol=1e-12, atol=1e-9)
        torch.testing.assert_close(found.trace, expected.trace)
        torch.testing.assert_close(found.effective_rank, expected.effective_rank)
    assert not whole.empty().gram.any()
    with pytest.raises(NotImplementedError):
        whole.add_(rows)


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e25])
def test_float32_is_as_exact_as_the_products_of_rows(size):
    geometry = Geometry((9, 8), (3, 3), ((1, 1), (1, 1)), (1, 1))
    x = size * torch.randn(40, 16, 9, 8)
    (rows,) = unfold(x.double(), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    exact, found = rows.mT @ rows, PatchMoments(Patches(x, 1, geometry)).gram
    assert found.dtype == torch.float64
    assert float((found - exact).norm() / exact.norm()) < 2e-7


def test_a_3_by_3_filter_takes_13_products_per_pixel_in_place_of_81():
    found = boxes(Geometry((32, 32), (3, 3), ((1, 1), (1, 1)), (1, 1)))
    assert len(found) == 29
    assert 12 <= sum(box.pixels for box in found) / 32**2 <= 13
    assert sum(len(box.blocks) for box in found if box.pixels > 30**2 - 1) >= 13


def test_pixels_that_no_tap_sees_need_not_be_finite(monkeypatch):
    monkeypatch.setattr(lags, "MOST_ZEROS", 99)
    x = torch.randn(2, 8, 3, 5)
    x[:, :, :, 2] = torch.nan  # two taps, three pixels apart, on lines of five: the one in the middle is not seen
    geometry = Geometry((3, 5), (1, 2), ((0, 0), (0, 0)), (1, 3))
    rows = patches_of(x, 1, geometry).double()
    torch.testing.assert_close(PatchMoments(Patches(x, 1, geometry)).gram, rows.mT @ rows, rtol=1e-6, atol=1e-6)


class Net(nn.Module):
    """Convolutions of which some are worth it and some are not, one that is shared, and one over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(3, 16, 3, padding=1)
        self.wide = nn.Conv2d(16, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 32, 3, padding="same", groups=2, dilation=2)
        self.strided = nn.Conv2d(32, 8, 3, stride=2)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(self.narrow(x).relu()).relu()
        x = self.wide(nn.functional.avg_pool2d(x, 2)).relu()
        return self.head(self.strided(self.grouped(x).relu()).mean((2, 3)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_pass_gives_the_moments_of_all_patches_in_the_order_of_first_use(dtype, monkeypatch):
    torch.manual_seed(0)
    model = Net().to(dtype).eval()
    samples = read_samples((torch.randn(60, 3, 16, 16, dtype=dtype), torch.arange(60) % 3))
    folds = [range(30), range(30, 60)]
    used = []
    add = PatchMoments.add_patches_
    monkeypatch.setattr(PatchMoments, "add_patches_", lambda self, patches: (used.append(1), add(self, patches)))
    with borrowed(model):
        found = collect(model, samples, folds, batch_size=16, device=torch.device("cpu"))
        assert used
        monkeypatch.setattr(Patches, "worthwhile", False)
        plain = collect(model, samples, folds, batch_size=16, device=torch.device("cpu"), exact=True)
    assert found.layers == plain.layers
    for one, other in zip(found.folds, plain.folds, strict=True):
        assert [*one] == [*other]
        for layer, moments in one.items():
            assert moments.n == other[layer].n
            assert (moments.rows is None) == (other[layer].rows is None)
            difference = (moments.gram - other[layer].gram).norm() / other[layer].gram.norm()
            assert float(difference) < (1e-14 if dtype == torch.float64 else 6e-7), layer
    assert isinstance(found.folds[0][found.layers[1]], Moments)

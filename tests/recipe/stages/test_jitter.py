"""Random changes of inputs, against a loop over images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import small_data, small_net
from verifix.recipe.stages.jitter import (
    CONTRAST,
    SHIFT,
    SPREAD,
    STRONG,
    SWAPPED,
    WEAK,
    distorted,
    flipped_and_shifted,
    jitter_for,
    swapped,
    weak_and_strong,
    with_noise,
)


def generators(seed: int = 3):
    return (torch.Generator().manual_seed(seed) for _ in range(2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_normal_and_as_large_as_said(dtype):
    inputs = 3 * torch.randn(400, 25, dtype=dtype) + 100
    before = inputs.clone()
    one, other = generators()
    changed = with_noise(inputs, one, deviation=30.0)
    assert torch.equal(inputs, before)
    assert torch.equal(changed, with_noise(inputs, other, deviation=30.0))
    assert changed.dtype == dtype
    noise = (changed - inputs).double() / 30
    assert float(noise.mean()) == pytest.approx(0, abs=0.04)
    assert float(noise.std()) == pytest.approx(1, abs=0.03)
    assert float(noise.pow(4).mean()) == pytest.approx(3, abs=0.3)
    assert not torch.equal(changed, with_noise(inputs, one, deviation=30.0))


@pytest.mark.parametrize(("height", "width"), [(16, 24), (9, 8), (5, 32), (32, 7)])
def test_flips_and_shifts_are_those_of_a_loop_over_images(height, width):
    n = 40
    images = torch.randn(n, 3, height, width)
    before = images.clone()
    one, other = generators()
    changed = flipped_and_shifted(images, one)
    assert torch.equal(images, before)
    up, left = height // SHIFT, width // SHIFT
    flips, rows, columns = (torch.randint(k, (n,), generator=other) for k in (2, 2 * up + 1, 2 * left + 1))
    for image, found, flip, row, column in zip(images, changed, flips, rows, columns, strict=True):
        padded = F.pad(image, (left, left, up, up), mode="replicate")
        expected = padded[:, row : row + height, column : column + width]
        assert torch.equal(found, expected.flip(-1) if flip else expected)
    assert set(flips.tolist()) == {0, 1}
    assert (set(rows.tolist()), set(columns.tolist())) == (set(range(2 * up + 1)), set(range(2 * left + 1)))
    assert not torch.equal(changed, flipped_and_shifted(images, one))


def test_what_labels_survive_depends_on_model_and_inputs(lend):
    x, y = small_data(60)
    images = torch.randn(60, 1, 8, 8)
    flat = lend(small_net().eval(), x, y)
    seeing = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    seeing = lend(seeing.eval(), images, y)
    unrolled = lend(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval(), images, y)
    assert jitter_for(seeing, images) is flipped_and_shifted
    for context, inputs in ((flat, x), (unrolled, images), (seeing, x)):
        change = jitter_for(context, inputs)
        assert (change.func, change.keywords) == (with_noise, {"deviation": SPREAD * inputs.std()})
    ragged = torch.nested.nested_tensor([torch.randn(2), torch.randn(3)], layout=torch.jagged)
    for inputs in (torch.arange(12).view(3, 4), {"ids": x}, (x, x), ragged):
        assert jitter_for(flat, inputs) is None


def test_a_strong_change_of_a_table_takes_a_fifth_of_the_numbers_from_one_other_row():
    rows, columns = 60, 400
    inputs = torch.arange(rows * columns, dtype=torch.float64).view(rows, columns)
    one, other = generators()
    changed = swapped(inputs, one, deviation=0.0)
    assert torch.equal(changed, swapped(inputs, other, deviation=0.0))
    assert torch.equal(changed % columns, inputs % columns)  # each number stays in its column
    sources = [{int(number) // columns for number in row} - {place} for place, row in enumerate(changed)]
    assert all(len(source) <= 1 for source in sources)
    assert float((changed != inputs).double().mean()) == pytest.approx(SWAPPED, abs=0.02)
    noise = swapped(inputs, next(generators()), deviation=2.0) - changed
    assert float(noise.std()) == pytest.approx(2, abs=0.05)


def test_a_strong_change_of_images_leaves_a_grey_square_and_moves_contrast_and_brightness(monkeypatch):
    monkeypatch.setattr("verifix.recipe.stages.jitter.STRONG", 0.0)
    images = torch.rand(200, 3, 16, 16)
    before = images.clone()
    one, other = generators()
    changed = distorted(images, one, spread=1.0)
    assert torch.equal(images, before)
    moved = flipped_and_shifted(images, other)
    grey = (changed == images.mean()).all(dim=1)
    for image, original, hidden in zip(changed, moved, grey, strict=True):
        rows, columns = hidden.any(dim=1), hidden.any(dim=0)
        assert 5 <= int(rows.sum()) <= 9
        assert torch.equal(hidden, rows[:, None] & columns)  # one rectangle
        x, y = original[:, ~hidden].flatten().double(), image[:, ~hidden].flatten().double()
        slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
        assert 1 - CONTRAST <= slope <= 1 + CONTRAST
        offset = y - images.mean().double() - slope * (x - images.mean().double())
        assert float(offset.std()) < 1e-5
        assert abs(float(offset.mean())) <= CONTRAST


def test_weak_and_strong_changes_are_those_of_the_inputs(lend):
    x, y = small_data(60)
    flat = lend(small_net().eval(), x, y)
    weak, strong = (change(x, torch.Generator().manual_seed(0)) for change in weak_and_strong(flat, x))
    assert float((weak - x).std() / x.std()) == pytest.approx(WEAK, rel=0.2)
    assert float((strong - x).std() / x.std()) > 2 * STRONG
    assert weak_and_strong(flat, torch.arange(9)) is None

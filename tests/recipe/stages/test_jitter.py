"""Random changes of inputs, against a loop over images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.cases import small_data, small_net
from verifix.recipe.stages.jitter import SHIFT, SPREAD, flipped_and_shifted, jitter_for, with_noise


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

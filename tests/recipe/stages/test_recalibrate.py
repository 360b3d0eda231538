from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.cases import small_data, small_net
from tests.stage_cases import NEAR_A_TIE, NEAREST, same
from verifix import DataError
from verifix.capture.layer import rounded_once
from verifix.model.samples import Samples
from verifix.recipe.candidates import Listed
from verifix.recipe.stages.recalibrate import SHARES, Recalibrate


class Pictures(nn.Module):
    """BatchNorm of two kinds, one with its own momentum, one that averages, and one without statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6, momentum=0.3)
        self.linear, self.average = nn.Linear(24, 8), nn.BatchNorm1d(8, momentum=None)
        self.own, self.head = nn.BatchNorm2d(6, track_running_stats=False), nn.Linear(8, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        x = self.own(self.norm(self.conv(x.unflatten(1, (2, 4, 4)))).relu())
        return self.head(self.drop(self.average(self.linear(x.flatten(1)))).relu())


def pictures(count: int) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    """A network that has trained for a while, and data that lie elsewhere."""
    model = Pictures().train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(20, 32))
    return model.eval(), 3 * torch.randn(count, 32) + 1, torch.arange(count) % 3


def buffers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def statistics(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value for name, value in buffers(model).items() if "running" in name}


def recorded(monkeypatch) -> list[list[int]]:
    batches: list[list[int]] = []
    real = Samples.batches

    def noted(self, indices, batch_size):
        for batch in real(self, indices, batch_size):
            batches.append(list(batch.indices))
            yield batch

    monkeypatch.setattr(Samples, "batches", noted)
    return batches


def updated(model: nn.Module, x: torch.Tensor, batches: list[list[int]]) -> nn.Module:
    """What torch's own update makes of a copy; its dropout is put out, as the stage leaves it."""
    twin = copy.deepcopy(model)
    twin.drop.p = 0.0
    with torch.enable_grad():
        torch.optim.swa_utils.update_bn((x[batch] for batch in batches), twin)
    return twin


@pytest.mark.parametrize(("count", "batch_size"), [(80, 64), (80, 20), (39, 20), (7, 2), (9, 1), (64, 64), (3, 2)])
def test_statistics_are_those_of_torchs_update_over_even_batches_of_two_or_more(lend, monkeypatch, count, batch_size):
    model, x, y = pictures(count)
    context = lend(model, x, y, batch_size=batch_size)
    batches = recorded(monkeypatch)
    update = Recalibrate(context).fit(1.0)
    assert sorted(i for batch in batches for i in batch) == list(range(count))
    sizes = list(map(len, batches))
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 2
    assert max(sizes) <= max(batch_size, 3)
    expected = statistics(updated(model, x, batches))
    assert update.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(update[name], value)
        assert not torch.allclose(value, context.parameter(name), atol=1e-2)


def test_no_batch_is_single_and_none_larger_than_allowed_whatever_the_numbers(lend, monkeypatch):
    model, x, y = small_net().eval(), *small_data(60)
    batches = recorded(monkeypatch)
    for count in (2, 3, 5, 7, 13, 31, 57, 60):
        for size in (1, 2, 3, 7, 8):
            context = lend(model, x[:count], y[:count], batch_size=size)
            batches.clear()
            Recalibrate(context).fit(1.0)
            assert 2 <= min(map(len, batches)) <= max(map(len, batches)) <= max(size, 3)
            assert sorted(i for batch in batches for i in batch) == list(range(count))


def test_a_share_mixes_the_trained_statistics_with_the_new_ones(lend):
    model, x, y = pictures(80)
    fitter = Recalibrate(lend(model, x, y))
    old, new = statistics(model), fitter.fit(1.0)
    for share in SHARES:
        update = fitter.fit(share)
        for name, value in update.items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, (1 - share) * old[name] + share * new[name])
    assert fitter.candidates() == Listed(SHARES)
    assert fitter.layers(0.5) == {"norm": {"share": 0.5}, "average": {"share": 0.5}}


def test_only_samples_of_the_context_count(lend):
    model, x, y = pictures(80)
    context = lend(model, x, y, folds=4, without=2)
    alone = lend(model, x[context.indices], y[context.indices])
    assert same(Recalibrate(context).fit(1.0), Recalibrate(alone).fit(1.0))


@pytest.mark.parametrize("fails", [False, True])
def test_counters_momentum_flags_and_statistics_come_back_also_after_an_error(lend, fails):
    model, x, y = pictures(80)
    context = lend(model, x, y, batch_size=20)
    before, calls = buffers(model), []

    def modules():
        return [(module.training, getattr(module, "momentum", None)) for module in model.modules()]

    def sometimes(module, *_):
        calls.append(1)
        if fails and len(calls) == 3:
            raise ZeroDivisionError("boom")

    model.head.register_forward_hook(sometimes)
    flags = modules()
    if fails:
        with pytest.raises(DataError, match="boom"):
            Recalibrate(context).fit(1.0)
    else:
        Recalibrate(context).fit(1.0)
    assert len(calls) >= 3
    assert same(buffers(model), before)
    assert modules() == flags
    assert not any(training for training, _ in flags)


def test_weights_of_other_stages_are_in_force(lend):
    model, x, y = pictures(80)
    changed = {"conv.weight": 2 * torch.randn(6, 2, 3, 3), "norm.running_mean": torch.full((6,), 5.0)}
    context = lend(model, x, y).after("other", 1.0, changed)
    found = Recalibrate(context).fit(0.5)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for name, value in changed.items():
            context.original(name)
            dict([*twin.named_parameters(), *twin.named_buffers()])[name].copy_(value)
    expected = Recalibrate(lend(twin, x, y)).fit(0.5)
    assert same(found, expected)
    assert not torch.allclose(found["norm.running_mean"], Recalibrate(lend(model, x, y)).fit(0.5)["norm.running_mean"])


def test_statistics_that_are_stored_in_half_precision_are_rounded_to_it_once(lend):
    model, x, y = pictures(80)
    exact = Recalibrate(lend(copy.deepcopy(model).double(), x.double(), y)).fit(1.0)
    context = lend(copy.deepcopy(model).double(), x.double(), y, stored_as={"norm.running_mean": torch.bfloat16})
    found = Recalibrate(context).fit(1.0)
    assert torch.equal(found["norm.running_mean"], rounded_once(exact["norm.running_mean"], torch.bfloat16))
    assert torch.equal(found["norm.running_var"], exact["norm.running_var"])
    fitter = Recalibrate(context)
    fitter.statistics = {"norm.running_mean": torch.full((6,), NEAR_A_TIE, dtype=torch.float64)}
    assert bool((fitter.fit(1.0)["norm.running_mean"] == NEAREST).all())


def test_it_says_when_there_is_nothing_to_recalibrate(lend):
    context = lend(small_net(bn=False).eval(), *small_data())
    assert Recalibrate(context).obstacle() == "the model has no BatchNorm with running statistics"
    assert Recalibrate(lend(pictures(8)[0], *pictures(8)[1:])).obstacle() == ""

"""Training a context's weights, against a loop that anyone would write."""

from __future__ import annotations

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

from tests.cases import small_data, small_net
from tests.stage_cases import NEAR_A_TIE, NEAREST, memorised, same
from verifix import DataError
from verifix.capture.layer import rounded_once
from verifix.losses import cross_entropy
from verifix.model.gradients import precise
from verifix.recipe.stages.training import (
    LATE,
    PULL,
    SMALLEST_SIZE,
    Pool,
    Schedule,
    Training,
    batch_size,
    descend,
    dropouts,
    rounded,
    trainable,
)

RATE, STEPS = 0.02, 9


def plain_training(model, x, y, batches, rate, steps=None, names=None) -> dict[str, torch.Tensor]:
    """One Adam per tensor, a pull, a rate along half a cosine, and an average that counts step t like t³."""
    twin = copy.deepcopy(model).eval()
    trained = {name: p for name, p in twin.named_parameters() if names is None or name in names}
    first = {name: p.detach().clone() for name, p in trained.items()}
    sizes = {name: max(float(p.detach().square().mean()) ** 0.5, SMALLEST_SIZE) for name, p in trained.items()}
    optimizers = {name: torch.optim.Adam([p]) for name, p in trained.items()}
    seen = []
    for t, rows in enumerate(batches, 1):
        with torch.enable_grad():
            for p in twin.parameters():
                p.requires_grad_().grad = None
            loss = cross_entropy(twin(x[rows]), y[rows]).mean()
            (loss + PULL / 2 * sum((p - first[name]).square().sum() for name, p in trained.items())).backward()
        for name, optimizer in optimizers.items():
            optimizer.param_groups[0]["lr"] = (
                sizes[name] * rate * 0.5 * (1 + math.cos(math.pi * (t - 1) / (steps or len(batches))))
            )
            optimizer.step()
        seen.append({name: p.detach().clone() for name, p in trained.items()})
    # Unrolled, the average that begins with w₁ and goes on with (1 − c) · average + c · w, c = (1 + η) / (t + η), gives
    # w the weight t · (t + 1) · … · (t + η − 1): t to the power of η for a late one.
    weights = [math.prod(range(t, t + LATE)) for t in range(1, len(seen) + 1)]
    return {name: sum(w * at[name] for w, at in zip(weights, seen, strict=True)) / sum(weights) for name in trained}


def memorised_case(double: bool = True):
    x, y = small_data(70)
    x = x.double() if double else x
    model = memorised(small_net().double() if double else small_net(), x, y)
    model[1].running_mean.add_(0.3)
    return model, x, y


def loss_of(logits, labels):
    return cross_entropy(precise(logits), labels).mean()


def rows_of(count: int, steps: int = STEPS, size: int = 20) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randperm(count, generator=generator)[:size] for _ in range(steps)]


def points_of(context, x, y, rows, *points, rate=RATE, loose=False):
    """What returns the weights at some points of a training on these rows; all of it by default."""
    given = iter(rows)

    def batch():
        chosen = next(given)
        return x[chosen], partial(loss_of, labels=y[chosen]), len(chosen)

    return descend(context, Schedule(rate, len(rows), points or (len(rows),), loose=loose), batch)


def trained_on(context, x, y, rows, **settings):
    """The weights in the end."""
    (weights,) = points_of(context, x, y, rows, **settings)
    return weights()


def test_it_is_plain_adam_with_a_pull_a_falling_rate_and_an_average_in_eval_mode(lend):
    model, x, y = memorised_case()
    context, rows = lend(model, x, y), rows_of(70)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    update = trained_on(context, x, y, rows)
    expected = plain_training(model, x, y, rows, RATE)
    assert update.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name, value in expected.items():
        torch.testing.assert_close(update[name], value, rtol=0, atol=1e-9)
        assert not torch.allclose(value, model.get_parameter(name), atol=1e-4)
    assert same(dict(model.named_buffers()), before)


def test_the_weights_at_a_point_are_the_average_so_far(lend):
    model, x, y = memorised_case()
    rows = rows_of(70)
    for point, weights in zip((2, 5), points_of(lend(model, x, y), x, y, rows, 2, 5), strict=True):
        update, expected = weights(), plain_training(model, x, y, rows[:point], RATE, steps=len(rows))
        for name, value in expected.items():
            torch.testing.assert_close(update[name], value, rtol=0, atol=1e-9)


def test_a_strong_pull_holds_the_weights(lend, monkeypatch):
    model, x, y = memorised_case()
    far = trained_on(lend(model, x, y), x, y, rows_of(70, 60))
    monkeypatch.setattr("verifix.recipe.stages.training.PULL", 1e3)
    near = trained_on(lend(model, x, y), x, y, rows_of(70, 60))
    for name, value in model.named_parameters():
        assert (near[name] - value).norm() < 0.5 * (far[name] - value).norm(), name


def test_it_starts_at_and_is_pulled_to_what_earlier_stages_left(lend):
    model, x, y = memorised_case()
    changed = {
        "0.weight": model[0].weight.detach() * 0.7,
        "1.running_mean": torch.ones(16, dtype=torch.float64),
    }
    rows = rows_of(70)
    update = trained_on(lend(model, x, y).after("other", 1.0, changed), x, y, rows)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight.copy_(changed["0.weight"])
        twin[1].running_mean.copy_(changed["1.running_mean"])
    for name, value in plain_training(twin, x, y, rows, RATE).items():
        torch.testing.assert_close(update[name], value, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"include": ["3.*"]}, {"3.weight", "3.bias"}),
        ({"exclude": ["0.*"]}, {"3.weight", "3.bias", "5.weight", "5.bias"}),
        ({"include": ["linear"], "exclude": ["5.weight"]}, {"0.weight", "0.bias", "3.weight", "3.bias"}),
    ],
)
def test_only_the_selected_layers_and_their_biases_are_trained(lend, settings, expected):
    model, x, y = memorised_case()
    rows = rows_of(70)
    update = trained_on(lend(model, x, y, **settings), x, y, rows)
    assert set(update) == expected
    for name, value in plain_training(model, x, y, rows, RATE, names=expected).items():
        torch.testing.assert_close(update[name], value, rtol=0, atol=1e-9)


def test_tensors_of_zeros_can_move(lend):
    model, x, y = memorised_case()
    with torch.no_grad():
        model[3].bias.zero_()
    update = trained_on(lend(model, x, y), x, y, rows_of(70))
    assert 0 < float(update["3.bias"].abs().max()) < STEPS * RATE * SMALLEST_SIZE


def test_tied_weights_are_trained_as_one(lend):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.head(self.b(self.a(x).relu()).relu())

    x, y = small_data(70)
    model = memorised(Tied().double(), x.double(), y)
    context, rows = lend(model, x.double(), y), rows_of(70)
    update = trained_on(context, x.double(), y, rows)
    assert "b.weight" not in update
    for name, value in plain_training(model, x.double(), y, rows, RATE).items():
        torch.testing.assert_close(update[name], value, rtol=0, atol=1e-9)
    with context.corrected(update) as corrected:
        assert corrected.a.weight is corrected.b.weight
        assert torch.equal(corrected.b.weight, update["a.weight"])


def test_parameters_that_partly_share_memory_are_left_alone(lend):
    x, y = small_data(70)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    memory = torch.randn(12, 8)
    model[0].weight, model[2].weight = nn.Parameter(memory[:8]), nn.Parameter(memory[4:])
    context = lend(model.eval(), x, y)
    assert trainable(context) == ["0.bias", "2.bias", "4.weight", "4.bias"]
    before = memory.clone()
    trained_on(context, x, y, rows_of(70))
    assert torch.equal(memory, before)


@pytest.mark.parametrize("fails", [False, True])
def test_flags_gradients_and_weights_come_back_also_after_an_error(lend, fails):
    model, x, y = memorised_case()
    model[3].weight.requires_grad_(False)
    model[0].weight.grad = torch.full_like(model[0].weight, 2.0)
    context = lend(model, x, y)
    calls: list = []

    def sometimes(*_):
        calls.append(1)
        if fails and len(calls) == 3:
            raise ZeroDivisionError("boom")

    model[5].register_forward_hook(sometimes)
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    if fails:
        with pytest.raises(DataError, match="boom"):
            trained_on(context, x, y, rows_of(70))
    else:
        update = trained_on(context, x, y, rows_of(70))
        assert "3.weight" not in update
        assert "3.bias" in update
    assert len(calls) >= 3
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert same({name: p.detach() for name, p in model.named_parameters()}, values)
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["0.weight"]
    assert bool((model[0].weight.grad == 2).all())


def dropping_case():
    """A network with dropout, and samples."""
    x, y = small_data(70)
    model = memorised(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, 3)), x, y)
    return model, x, y


@pytest.mark.parametrize("loose", [False, True])
def test_stopped_and_continued_it_is_what_it_is_straight_through_whatever_others_draw(lend, loose):
    model, x, y = dropping_case()
    context, rows = lend(model, x, y), rows_of(70)

    def training():
        return Training(points_of(context, x, y, rows, 3, 6, 9, loose=loose))

    straight = training()
    last, stopped = straight.after(3), training()
    found = []
    for point in (1, 2, 3):
        found.append(stopped.after(point))
        torch.randn(7)
        trained_on(context, x, y, rows_of(70, 2), loose=loose)  # another training in between
    assert same(found[-1], last)
    assert same(stopped.after(1), found[0])
    again = training()
    torch.manual_seed(11)
    assert same(again.after(2), found[1])
    assert not same(found[0], found[1])
    with pytest.raises(ValueError, match="training is at 3 already, and 1 was not kept"):
        straight.after(1)


def test_only_a_loose_training_drops_out_and_draws_by_the_seed_of_the_run(lend):
    model, x, y = dropping_case()
    context, rows = lend(model, x, y), rows_of(70)
    other = lend(model, x, y, seed=1)
    firm, loose = (trained_on(context, x, y, rows, loose=loose) for loose in (False, True))
    assert not same(firm, loose)
    assert same(loose, trained_on(context, x, y, rows, loose=True))
    assert not same(loose, trained_on(other, x, y, rows, loose=True))
    assert same(firm, trained_on(other, x, y, rows))
    assert not any(module.training for module in model.modules())
    model[2].p = 0.0
    assert dropouts(model) == []
    assert same(trained_on(context, x, y, rows, loose=True), firm)


def test_half_precision_is_trained_in_float32_and_rounded_at_the_end(lend):
    x, y = small_data(70)
    model = memorised(nn.Sequential(nn.Linear(8, 3)), x, y).to(torch.bfloat16)
    x = x.to(torch.bfloat16)
    context = lend(model, x, y)
    few, many = (trained_on(context, x, y, rows_of(70, steps), rate=5e-4) for steps in (4, 200))
    assert many["0.weight"].dtype == torch.bfloat16
    changed = [int((update["0.weight"] != model[0].weight).sum()) for update in (few, many)]
    assert changed[1] > changed[0]  # steps too small for bfloat16 have added up
    assert changed[1] >= 8


def test_weights_stored_in_half_precision_are_rounded_once(lend):
    model, x, y = memorised_case()
    exact = trained_on(lend(model, x, y), x, y, rows_of(70))
    context = lend(model, x, y, stored_as=dict.fromkeys(exact, torch.bfloat16))
    found = trained_on(context, x, y, rows_of(70))
    assert all(torch.equal(found[name], rounded_once(value, torch.bfloat16)) for name, value in exact.items())
    near = rounded(context, "5.bias", torch.full((3,), NEAR_A_TIE, dtype=torch.float64))
    assert bool((near == NEAREST).all())


def test_weights_that_are_not_finite_are_refused(lend):
    model, x, y = memorised_case()
    with pytest.raises(DataError, match="training led to weights that contain NaN or Inf") as caught:
        trained_on(lend(model, x, y), x, y, rows_of(70), rate=math.inf)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("count", "size"), [(2, 32), (400, 33), (1000, 83), (10_000, 128)])
def test_batches_are_a_twelfth_of_the_samples_within_bounds(count, size):
    assert batch_size(count, 1e9) == size


@pytest.mark.parametrize(("work", "size"), [(0, 128), (84_000, 128), (250_000, 60), (1e6, 33)])
def test_batches_of_small_networks_are_larger(work, size):
    assert batch_size(400, work) == size


@pytest.mark.parametrize("kind", ["tensor", "dictionary"])
def test_a_pool_draws_each_sample_once_before_any_comes_again(lend, kind):
    x, y = small_data(60)
    context = lend(small_net().eval(), x, y, folds=2, without=0)
    samples, indices = context.run.samples, context.indices
    if kind == "dictionary":
        from verifix.model.samples import read_samples

        samples = read_samples(({"x": x, "twice": 2 * x}, y))
    pool, twin = (Pool(samples, indices, 10, seed) for seed in (3, 3))
    draws = [pool.draw() for _ in range(6)]
    for inputs, places in draws:
        rows = torch.tensor(indices)[places]
        if kind == "dictionary":
            assert torch.equal(inputs["x"], x[rows])
            assert torch.equal(inputs["twice"], 2 * x[rows])
        else:
            assert torch.equal(inputs, x[rows])
        assert torch.equal(twin.draw()[1], places)
    for epoch in (draws[:3], draws[3:]):
        assert torch.cat([places for _, places in epoch]).sort().values.tolist() == list(range(30))
    assert [p.tolist() for _, p in draws[:3]] != [p.tolist() for _, p in draws[3:]]
    assert Pool(samples, indices, 100, 0).size == 30

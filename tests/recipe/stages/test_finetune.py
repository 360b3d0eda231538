from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import verifix
from tests.cases import small_data, small_net
from tests.stage_cases import NEAR_A_TIE, NEAREST, memorised, same
from verifix import DataError
from verifix.capture.layer import rounded_once
from verifix.losses import cross_entropy
from verifix.model.samples import Samples
from verifix.recipe.candidates import Listed
from verifix.recipe.stages import finetune
from verifix.recipe.stages.finetune import FEWEST, MOST, PULL, RATES, SEEN, FineTune, batch_size, trainable


def batches_read(monkeypatch) -> list[list[int]]:
    found: list[list[int]] = []
    real = Samples.batches

    def noted(self, indices, batch_size):
        for batch in real(self, indices, batch_size):
            found.append(list(batch.indices))
            yield batch

    monkeypatch.setattr(Samples, "batches", noted)
    return found


def plain_training(model, x, y, batches, rate, names=None) -> dict[str, torch.Tensor]:
    """Adam with an explicit pull, as anyone would write it."""
    twin = copy.deepcopy(model).eval()
    first = {name: p.detach().clone() for name, p in twin.named_parameters()}
    trained = {name: p for name, p in twin.named_parameters() if names is None or name in names}
    sizes = {name: max(float(p.detach().square().mean()) ** 0.5, 1e-3) for name, p in trained.items()}
    optimizer = torch.optim.Adam([{"params": [p], "lr": rate * sizes[name]} for name, p in trained.items()])
    with torch.enable_grad():
        for p in twin.parameters():
            p.requires_grad_()
        for batch in batches:
            optimizer.zero_grad()
            loss = cross_entropy(twin(x[batch]), y[batch]).mean()
            loss = loss + PULL / 2 * sum((p - first[name]).square().sum() for name, p in trained.items())
            loss.backward()
            optimizer.step()
    return {name: p.detach() for name, p in trained.items()}


def memorised_case(double: bool = True):
    x, y = small_data(70)
    x = x.double() if double else x
    model = memorised(small_net().double() if double else small_net(), x, y)
    model[1].running_mean.add_(0.3)
    return model, x, y


def test_it_is_plain_adam_with_a_pull_in_eval_mode_on_the_same_batches(lend, monkeypatch):
    model, x, y = memorised_case()
    context = lend(model, x, y, folds=5, without=2)
    read = batches_read(monkeypatch)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    update = FineTune(context).fit((RATES[-1], 3.0))
    epoch = -(-len(context.indices) // batch_size(len(context.indices)))
    assert len(read) == 3 * epoch
    for start in range(0, len(read), epoch):
        assert sorted(i for batch in read[start : start + epoch] for i in batch) == context.indices
    assert read[:epoch] != read[epoch : 2 * epoch]
    expected = plain_training(model, x, y, read, RATES[-1])
    assert update.keys() == expected.keys() == dict(model.named_parameters()).keys()
    for name, value in expected.items():
        torch.testing.assert_close(update[name], value, rtol=0, atol=1e-9)
        assert not torch.allclose(value, model.get_parameter(name), atol=1e-6)
    assert same(dict(model.named_buffers()), before)


def test_it_starts_at_and_is_pulled_to_what_earlier_stages_left(lend, monkeypatch):
    model, x, y = memorised_case()
    changed = {
        "0.weight": model[0].weight.detach() * 0.7,
        "1.running_mean": torch.ones(16, dtype=torch.float64),
    }
    context = lend(model, x, y).after("other", 1.0, changed)
    read = batches_read(monkeypatch)
    update = FineTune(context).fit((RATES[-1], 2.0))
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin[0].weight.copy_(changed["0.weight"])
        twin[1].running_mean.copy_(changed["1.running_mean"])
    for name, value in plain_training(twin, x, y, read, RATES[-1]).items():
        torch.testing.assert_close(update[name], value, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"include": ["3.*"]}, {"3.weight", "3.bias"}),
        ({"exclude": ["0.*"]}, {"3.weight", "3.bias", "5.weight", "5.bias"}),
        ({"include": ["linear"], "exclude": ["5.weight"]}, {"0.weight", "0.bias", "3.weight", "3.bias"}),
    ],
)
def test_only_the_selected_layers_and_their_biases_are_trained(lend, monkeypatch, settings, expected):
    model, x, y = memorised_case()
    context = lend(model, x, y, **settings)
    read = batches_read(monkeypatch)
    update = FineTune(context).fit((RATES[-1], 1.0))
    assert set(update) == expected
    for name, value in plain_training(model, x, y, read, RATES[-1], expected).items():
        torch.testing.assert_close(update[name], value, rtol=0, atol=1e-9)


def test_tied_weights_are_trained_as_one(lend):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)
            self.b.weight = self.a.weight

        def forward(self, x):
            return self.head(self.b(self.a(x).relu()).relu())

    x, y = small_data(70)
    context = lend(memorised(Tied(), x, y), x, y)
    update = FineTune(context).fit((RATES[-1], 1.0))
    assert "a.weight" in update
    assert "b.weight" not in update
    with context.corrected(update) as model:
        assert model.a.weight is model.b.weight
        assert torch.equal(model.b.weight, update["a.weight"])


def test_parameters_that_partly_share_memory_are_left_alone(lend):
    x, y = small_data(70)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    memory = torch.randn(12, 8)
    model[0].weight, model[2].weight = nn.Parameter(memory[:8]), nn.Parameter(memory[4:])
    context = lend(model.eval(), x, y)
    assert trainable(context) == ["0.bias", "2.bias", "4.weight", "4.bias"]
    before = memory.clone()
    FineTune(context).fit((RATES[-1], 1.0))
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
            FineTune(context).fit((RATES[-1], 2.0))
    else:
        update = FineTune(context).fit((RATES[-1], 2.0))
        assert "3.weight" not in update
        assert "3.bias" in update
    assert len(calls) >= 3
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert same({name: p.detach() for name, p in model.named_parameters()}, values)
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["0.weight"]
    assert bool((model[0].weight.grad == 2).all())


def test_training_on_from_short_to_long_is_training_long(lend):
    model, x, y = memorised_case()
    context = lend(model, x, y)
    fitter = FineTune(context)
    for rate in RATES:
        short, long = fitter.fit((rate, 1.0)), fitter.fit((rate, 4.0))
        assert same(FineTune(context).fit((rate, 4.0)), long)
        assert same(FineTune(context).fit((rate, 1.0)), short)
        assert same(fitter.fit((rate, 1.0)), short)
        assert not same(short, long)
    with pytest.raises(ValueError, match="was not kept"):
        fitter.fit((RATES[0], 2.0))


@pytest.mark.parametrize("count", [40, 70])
def test_the_candidates_are_each_rate_short_and_long(lend, count):
    x, y = small_data(count)
    context = lend(small_net().eval(), x, y)
    candidates = FineTune(context).candidates()
    assert isinstance(candidates, Listed)
    assert {rate for rate, _ in candidates.strengths} == set(RATES)
    longest = min(max(round(SEEN / count), FEWEST), MOST)
    assert {epochs for _, epochs in candidates.strengths} == {longest // 4, longest}
    assert FineTune(context).obstacle() == ""


def test_half_precision_is_trained_in_float32_and_rounded_at_the_end(lend):
    x, y = small_data(70)
    model = memorised(nn.Sequential(nn.Linear(8, 3)), x, y).to(torch.bfloat16)
    context = lend(model, x.to(torch.bfloat16), y)
    few, many = (FineTune(context).fit((1e-4, epochs)) for epochs in (1.0, 12.0))
    assert many["0.weight"].dtype == torch.bfloat16
    changed = [int((update["0.weight"] != model[0].weight).sum()) for update in (few, many)]
    assert changed[1] > changed[0]  # steps too small for bfloat16 have added up
    assert changed[1] >= 8


def test_weights_stored_in_half_precision_are_rounded_once(lend):
    model, x, y = memorised_case()
    exact = FineTune(lend(model, x, y)).fit((RATES[-1], 1.0))
    context = lend(model, x, y, stored_as=dict.fromkeys(exact, torch.bfloat16))
    found = FineTune(context).fit((RATES[-1], 1.0))
    assert all(torch.equal(found[name], rounded_once(value, torch.bfloat16)) for name, value in exact.items())
    near = finetune._rounded(context, "5.bias", torch.full((3,), NEAR_A_TIE, dtype=torch.float64))
    assert bool((near == NEAREST).all())


class Closed(nn.Module):
    """A model that lets no gradients through."""

    def __init__(self) -> None:
        super().__init__()
        self.net = small_net()

    def forward(self, x):
        with torch.no_grad():
            return self.net(x)


def test_a_model_without_gradients_gets_one_clear_line(lend):
    x, y = small_data(70)
    with pytest.raises(DataError, match=r"no gradients flow through the model .*--recipe verifix") as caught:
        verifix.correct(Closed().eval(), (x, y), recipe="finetune", progress=False)
    assert "\n" not in str(caught.value)
    assert verifix.correct(Closed().eval(), (x, y), recipe="verifix", progress=False).curve


def test_parameters_of_a_scripted_part_are_no_obstacle():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scripting is deprecated, but users' models have it
        part = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
        x, y = small_data(70)
        model = nn.Sequential(nn.Linear(8, 8), part, nn.Linear(8, 3)).eval()
        correction = verifix.correct(model, (x, y), recipe="finetune", include=["0.*", "2.*"], progress=False)
        assert verifix.correct(model, (x, y), recipe="finetune", progress=False).choices["finetune"].points
    assert correction.choices["finetune"].points
    assert all(p.requires_grad for p in model.parameters())


def test_nothing_to_train_is_an_obstacle(lend, monkeypatch):
    context = lend(small_net().eval(), *small_data())
    monkeypatch.setattr(finetune, "trainable", lambda _: [])
    assert FineTune(context).obstacle() == "no parameter may be changed"
